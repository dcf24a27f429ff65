"""Which store is meant, and a version's folder by its reference."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from foreword.errors import ConfigError
from foreword.files import data_folder
from foreword.versions.local import LocalPlace
from foreword.versions.names import SCHEME, is_reference, parse
from foreword.versions.place import Place
from foreword.versions.remote import RemotePlace

VARIABLE = "FOREWORD_STORE"
_LOCAL = ("file://", "local://")
_chosen: ContextVar[str | None] = ContextVar("foreword_store", default=None)


def default_store() -> str:
    """Return the store that is meant where none is named: `--store`, else `$FOREWORD_STORE`, else the user's own."""
    return _chosen.get() or os.environ.get(VARIABLE) or str(data_folder() / "store")


@contextmanager
def using_store(store: str | None) -> Iterator[None]:
    """Let `store` be the default within the block; None changes nothing."""
    token = _chosen.set(store or _chosen.get())
    try:
        yield
    finally:
        _chosen.reset(token)


def place_at(store: str | Path | None = None, options: dict[str, Any] | None = None) -> Place:
    """Return the place of a store: a local folder or an fsspec URL; None: the default.

    Raises `ConfigError` for a URL that can't be one, `DependencyError` if a package is missing.
    """
    text = str(store) if store is not None else default_store()
    if not text or "\0" in text:
        raise ConfigError("store", f"{text!r} is no folder and no URL")
    if text.startswith("hf://"):
        raise ConfigError("store", "a hub repository is one prefix, no store; use foreword store push and pull")
    if text.startswith(_LOCAL):
        return LocalPlace(text.partition("://")[2])
    return RemotePlace(text, options) if "://" in text else LocalPlace(text)


def means_store(path: str | Path) -> bool:
    """Return True if `path` is a reference, and no file or folder that there is."""
    text = str(path)
    return text.startswith(SCHEME) or (is_reference(text) and not os.path.lexists(text))


@contextmanager
def version_folder(reference: str, place: Place | None = None) -> Iterator[Path]:
    """Yield the folder of the version that `reference` means; it stays while the block lasts.

    place: None: that of the default store. Raises `UnknownPrefixError`, `ConfigError`, `StorageError`.
    """
    place, wanted = place or place_at(), parse(reference)
    digest = place.find(wanted)
    with place.reading(wanted.name, digest) as folder:
        yield folder
