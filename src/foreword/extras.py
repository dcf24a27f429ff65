"""Packages that only some features need, and the extras that bring them."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from foreword.errors import DependencyError

# module → the extra that installs it
EXTRAS = {
    "accelerate": "train",
    "sacrebleu": "eval", "rouge_score": "eval", "sklearn": "eval", "seqeval": "eval",
    "matplotlib": "plots",
    "tensorboard": "tensorboard",
    "datasets": "data", "pyarrow": "data",
    "gguf": "gguf",
    "peft": "lora",
    "torchao": "int8",
    "bitsandbytes": "bnb",
    "prompt_toolkit": "chat",
}  # fmt: skip


def require(module: str, purpose: str) -> Any:
    """Import `module`, for instance require("pyarrow.parquet", "to read Parquet").

    Raises `DependencyError` that names the extra if its package is missing.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise missing(package, purpose) from error


def missing(package: str, purpose: str, extra: str | None = None) -> DependencyError:
    """Return the error that says how to install `package`: by `extra`, the one that brings it, or its own name."""
    extra = extra or EXTRAS.get(package)
    command = package if extra is None else f"'foreword[{extra}]'"
    return DependencyError(f"{package} is needed {purpose}: pip install {command}")


def require_all(extra: str, packages: tuple[str, ...], purpose: str) -> None:
    """Raise `DependencyError` that names `extra` if one of `packages` is missing. None is imported."""
    for package in packages:
        if not installed(package):
            raise missing(package, purpose, extra)


def installed(package: str) -> bool:
    """Whether `package` can be imported; it is not."""
    return find_spec(package) is not None
