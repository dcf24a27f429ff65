"""`PrefixPool`: thousands of saved prefixes, of which those in use are in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from foreword.errors import ConfigError, UnknownPrefixError
from foreword.prefix import Prefix
from foreword.prefix.stored import MANIFEST

if TYPE_CHECKING:
    from foreword.base import Base


class PrefixPool:
    """The saved prefixes in `folder`, by the names of their folders, ready for `base`.

        pool = PrefixPool(base, "prefixes", max_bytes=256 * 2**20)
        with base.attach(pool["summary"]):
            ...
            base.switch(pool["translation"])

    A prefix is read when it is first asked for, from its memory-mapped file: checked against its manifest and the base, and
    brought into the base's dtype and onto its device, so that attaching copies nothing. max_bytes: tensors kept in
    memory; beyond it those that were not asked for the longest go. What somebody still holds (an open attach, say) stays
    alive, uncounted, until they let go of it. How many there are costs nothing: a name is looked up in the file system when
    it is not in memory. Files that change later are read again after `forget`. Safe to use from several threads.
    Raises `ConfigError` if `folder` is none or `max_bytes` is not positive.
    """

    def __init__(self, base: Base, folder: str | Path, max_bytes: int = 2**30) -> None:
        if max_bytes < 1:
            raise ConfigError("max_bytes", f"must be 1 or more, not {max_bytes}")
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ConfigError("folder", f"{folder} is no folder of saved prefixes")
        self._base, self._max_bytes = base, max_bytes
        self._kept: OrderedDict[str, Prefix] = OrderedDict()
        self._num_bytes = 0
        self._forgotten = 0  # how often something was; what was read before is not kept after
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors that are kept; at most `max_bytes`."""
        return self._num_bytes

    @property
    def resident(self) -> tuple[str, ...]:
        """The names that are kept, those asked for the longest ago first."""
        with self._lock:
            return tuple(self._kept)

    def __getitem__(self, name: str) -> Prefix:
        """The prefix called `name`.

        Raises `UnknownPrefixError`, `PrefixFormatError` for damaged files, `PrefixMismatchError` for another base's.
        """
        with self._lock:
            found = self._kept.get(name)
            if found is not None:
                self._kept.move_to_end(name)
                return found
            forgotten = self._forgotten
        return self._keep(name, self._read(name), forgotten)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._kept or self._is_prefix(name))

    def __iter__(self) -> Iterator[str]:
        """The names of all saved prefixes, in order."""
        found = sorted(entry.name for entry in self.folder.iterdir())
        return (name for name in found if self._is_prefix(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def forget(self, name: str) -> None:
        """Keep `name` no longer; its files stay, and are read again when it is asked for."""
        with self._lock:
            self._forgotten += 1
            gone = self._kept.pop(name, None)
            self._num_bytes -= 0 if gone is None else gone.num_bytes

    def _is_prefix(self, name: str) -> bool:
        inside = name not in ("", ".", "..") and Path(name).name == name
        return inside and (self.folder / name / MANIFEST).is_file()

    def _read(self, name: str) -> Prefix:
        if not self._is_prefix(name):
            raise UnknownPrefixError(f"{self.folder} has no prefix called {name!r}")
        prefix = Prefix.load(self.folder / name).to(self._base.dtype, self._base.device)
        self._base.require_fit(prefix)
        return prefix

    def _keep(self, name: str, prefix: Prefix, forgotten: int) -> Prefix:
        """Keep `prefix`, or the one that another thread has read meanwhile, and let the oldest go."""
        with self._lock:
            if (other := self._kept.get(name)) is not None:
                return other
            if forgotten != self._forgotten:
                return prefix
            self._kept[name] = prefix
            self._num_bytes += prefix.num_bytes
            while self._num_bytes > self._max_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._num_bytes -= oldest.num_bytes
        return prefix
