"""`PrefixPool`: thousands of saved prefixes, of which the recently used ones are in memory."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from foreword.errors import ConfigError, UnknownPrefixError
from foreword.folders import is_temporary
from foreword.prefix import Prefix
from foreword.prefix.stored import MANIFEST
from foreword.store.store import Store
from foreword.versions.names import LATEST

if TYPE_CHECKING:
    from foreword.base import Base


class PrefixPool:
    """The saved prefixes in `folder`, by the names of their folders, or those of a store, ready for `base`.

        >>> folder = prefix.save("prefixes/summary").parent
        >>> pool = foreword.PrefixPool(base, folder, max_bytes=256 * 2**20)
        >>> with base.attach(pool["summary"]):
        ...     base.switch(pool["summary"])
        >>> sorted(pool)
        ['summary']

    With a `Store` in place of the folder the names are references: `pool["team/task"]`, `pool["team/task@prod"]`. A tag
    is looked up when the prefix is read; after `forget` it is looked up again.
    A prefix is read from its file when it is first asked for. It is checked against its manifest and the base, and
    moved to the base's dtype and device, so that attaching copies nothing. Folders that a writer has not finished have
    no name here.
    max_bytes: limit for the tensors in memory. Above it the prefixes that have not been used for the longest time are
    dropped. A dropped prefix that is still in use, for instance in an open attach, stays alive and is not counted.
    The number of saved prefixes doesn't matter: a name that is not in memory is looked up in the file system. Files
    that change later are read again after `forget`. Safe to use from several threads.
    Raises `ConfigError` if `folder` is not a folder or `max_bytes` is not positive.
    """

    def __init__(self, base: Base, folder: str | Path | Store, max_bytes: int = 2**30) -> None:
        if max_bytes < 1:
            raise ConfigError("max_bytes", f"must be 1 or more, not {max_bytes}")
        self._saved: _Saved = _InStore(folder) if isinstance(folder, Store) else _InFolder(Path(folder))
        self._base, self._max_bytes = base, max_bytes
        self._kept: OrderedDict[str, Prefix] = OrderedDict()
        self._num_bytes = 0
        self._forgotten = 0  # calls of `forget`; a prefix that was being read during such a call is not kept
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors in memory; at most `max_bytes`."""
        return self._num_bytes

    @property
    def resident(self) -> tuple[str, ...]:
        """The names of the prefixes in memory, the least recently used first."""
        with self._lock:
            return tuple(self._kept)

    def __getitem__(self, name: str) -> Prefix:
        """Return the prefix called `name`.

        Raises `UnknownPrefixError`, `PrefixFormatError` for damaged files, `PrefixMismatchError` for another base.
        """
        with self._lock:
            prefix = self._kept.get(name)
            if prefix is not None:
                self._kept.move_to_end(name)
                return prefix
            forgotten = self._forgotten
        return self._keep(name, self._read(name), forgotten)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._kept or self._saved.has(name))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of all saved prefixes, in order."""
        return iter(self._saved.names())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def forget(self, name: str) -> None:
        """Drop `name` from memory. Its files stay, and are read again when the prefix is asked for."""
        with self._lock:
            self._forgotten += 1
            dropped = self._kept.pop(name, None)
            self._num_bytes -= 0 if dropped is None else dropped.num_bytes

    def _read(self, name: str) -> Prefix:
        prefix = self._saved.load(name).to(self._base.dtype, self._base.device)
        self._base.require_fit(prefix)
        return prefix

    def _keep(self, name: str, prefix: Prefix, forgotten: int) -> Prefix:
        """Keep `prefix` in memory, drop the least recently used ones, and return it.

        If another thread has read the same prefix in the meantime, return that one.
        """
        with self._lock:
            if (kept := self._kept.get(name)) is not None:
                return kept
            if forgotten != self._forgotten:
                return prefix
            self._kept[name] = prefix
            self._num_bytes += prefix.num_bytes
            while self._num_bytes > self._max_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._num_bytes -= oldest.num_bytes
        return prefix


class _Saved(Protocol):
    """Where a pool's prefixes come from."""

    def names(self) -> list[str]: ...
    def has(self, name: str) -> bool: ...
    def load(self, name: str) -> Prefix: ...


class _InFolder:
    """Saved prefixes side by side in a folder. Raises `ConfigError` if it is none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if not folder.is_dir():
            raise ConfigError("folder", f"{folder} is no folder of saved prefixes")

    def names(self) -> list[str]:
        return sorted(entry.name for entry in self._folder.iterdir() if self.has(entry.name))

    def has(self, name: str) -> bool:
        inside = name not in ("", ".", "..") and Path(name).name == name and not is_temporary(name)
        return inside and os.path.isfile(self._folder / name / MANIFEST)  # also for names too long

    def load(self, name: str) -> Prefix:
        if not self.has(name):
            raise UnknownPrefixError(f"{self._folder} has no prefix called {name!r}")
        return Prefix.load(self._folder / name)


class _InStore:
    """The names of a store that have a latest version, and every reference to it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def names(self) -> list[str]:
        return [name for name in self._store.names() if LATEST in self._store.tags(name)]

    def has(self, name: str) -> bool:
        try:
            self._store.version(name)
        except (ConfigError, UnknownPrefixError):
            return False
        return True

    def load(self, name: str) -> Prefix:
        try:
            return self._store.load(name)
        except ConfigError as error:
            raise UnknownPrefixError(f"{name!r:.100} is no name of a stored prefix: {error}") from error
