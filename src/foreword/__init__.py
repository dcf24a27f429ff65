"""Foreword: train, measure and run learned prefixes on frozen language models.

A trained prefix is a portable key/value cache. Importing this package is cheap: torch and
Transformers are loaded when a name that needs them is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from foreword._version import __version__

if TYPE_CHECKING:
    from foreword import runs
    from foreword.base import Base, load
    from foreword.base.compose import average, concat
    from foreword.compression import CompressResult, compress
    from foreword.config import CompressConfig, EvalConfig, TrainConfig
    from foreword.errors import ForewordError
    from foreword.evaluation import evaluate
    from foreword.prefix import Fingerprint, Prefix
    from foreword.store import PrefixPool, Store
    from foreword.training import TrainResult, train

_HOME = {
    "Base": "foreword.base",
    "CompressConfig": "foreword.config",
    "CompressResult": "foreword.compression",
    "EvalConfig": "foreword.config",
    "Fingerprint": "foreword.prefix",
    "ForewordError": "foreword.errors",
    "Prefix": "foreword.prefix",
    "PrefixPool": "foreword.store",
    "Store": "foreword.store",
    "TrainConfig": "foreword.config",
    "TrainResult": "foreword.training",
    "average": "foreword.base.compose",
    "compress": "foreword.compression",
    "concat": "foreword.base.compose",
    "evaluate": "foreword.evaluation",
    "load": "foreword.base",
    "train": "foreword.training",
}

__all__ = [
    "Base",
    "CompressConfig",
    "CompressResult",
    "EvalConfig",
    "Fingerprint",
    "ForewordError",
    "Prefix",
    "PrefixPool",
    "Store",
    "TrainConfig",
    "TrainResult",
    "__version__",
    "average",
    "compress",
    "concat",
    "evaluate",
    "load",
    "runs",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "runs":
        return import_module("foreword.runs")
    if name not in _HOME:
        raise AttributeError(f"module 'foreword' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
