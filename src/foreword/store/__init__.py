"""A home for prefixes: `Store` (versions and tags by name), and `PrefixPool` (many of them ready for one base).

`store` is what is done, `staging` makes a version, `card` its model card, `hub` copies to and from the
Hugging Face hub. What lies where, and how, is `foreword.versions`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from foreword.store.problem import Problem
from foreword.store.store import Entry, Store

if TYPE_CHECKING:
    from foreword.store.pool import PrefixPool

__all__ = ["Entry", "PrefixPool", "Problem", "Store"]


def __getattr__(name: str) -> Any:
    """Import what needs PyTorch when it is asked for: the store's own commands don't."""
    if name != "PrefixPool":
        raise AttributeError(f"module 'foreword.store' has no attribute {name!r}")
    return import_module("foreword.store.pool").PrefixPool
