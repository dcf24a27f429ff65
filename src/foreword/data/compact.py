"""Many items in little memory: columns on the disk, from which an item is made when it is asked for.

The items of a source of which there are more than `LISTED` go into such a store, in Foreword's cache. It stays there if
it can be known again (`row_cache`), else it goes with the last that uses it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import weakref
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from foreword import status
from foreword.data.columns import Column, Numbers, Unstorable, columns_of
from foreword.data.views import Made
from foreword.files import Unreadable, new_folder, read_json, write_json, writing
from foreword.folders import temporary_folder
from foreword.sealing import manifest_digest, sealed

T = TypeVar("T")
VERSION = 1
LISTED = 16_384  # items; as many are a list
HEAD = "head.json"
_TOKENS = "num_tokens"


class Compact(Made[T]):
    """The items of a store. kind: the dataclass that they are of. count: how many there are.

    Raises `Unreadable` if the folder doesn't hold them.
    """

    def __init__(self, folder: Path, kind: type[T], count: int) -> None:
        self._kind, self._count = kind, count
        self._columns = columns_of(kind, folder)
        self._tokens = Numbers(folder, _TOKENS)
        for column in (*self._columns.values(), self._tokens):
            try:
                column.open()
            except (OSError, ValueError) as error:
                raise Unreadable(f"can't be read: {error}") from error
            if not column.fits(count):
                raise Unreadable(f"doesn't hold {count:,} items")

    def __len__(self) -> int:
        return self._count

    def make(self, number: int) -> T:
        return self._kind(**{name: column.get(number) for name, column in self._columns.items()})

    def token_counts(self) -> Any:
        return self._tokens.all


class Gathering(Generic[T]):
    """Items on their way: a list, or a store as soon as there are more than `listed`. To be used within `with`.

    place: the folder that the store becomes; None: no list is ever left. kept: whether the store stays there.
    """

    def __init__(self, place: Path | None, kept: bool = False, listed: int = LISTED) -> None:
        self._place, self._kept, self._listed = place, kept, listed
        self._list: list[T] = []
        self._columns: dict[str, Column] = {}
        self._folder = Path()
        self._count = 0
        self._held = ExitStack()

    def __enter__(self) -> Gathering[T]:
        return self

    def __exit__(self, *error: Any) -> None:
        if any(error):
            self._drop()
        else:
            self._held.close()

    def __len__(self) -> int:
        return self._count

    def append(self, item: T) -> None:
        """Add an item. Raises `StorageError` if the store can't be written."""
        if self._columns:
            try:
                self._write(item)
            except Unstorable:
                self._back_to_list(item)
        else:
            self._list.append(item)
        self._count += 1
        if not self._columns and self._place is not None and self._count > self._listed:
            self._begin(self._place)

    def finish(self, about: dict[str, Any]) -> Sequence[T]:
        """Return all items. about: stands in the head of a store that is kept. Raises `StorageError`."""
        if not self._columns or self._place is None:
            return self._list
        with writing(self._folder):
            for column in self._columns.values():
                column.close()
            items: Compact[T] = Compact(self._folder, self._kind, self._count)
            if self._kept:
                self._keep(about)
                return items
        weakref.finalize(items, _discard, self._folder, self._held.pop_all())
        return items

    def _keep(self, about: dict[str, Any]) -> None:
        """Let the store become complete at its place, unless there is too much to say about it."""
        described = {"version": VERSION, "count": self._count, "content": content_digest(self._folder)}
        try:
            head = sealed(about | described)
        except Unreadable:
            self._drop()
            return
        write_json(self._folder / HEAD, head)
        self._held.close()

    def _begin(self, place: Path) -> None:
        """Move what is listed into a store, if it can be stored."""
        self._kind: type[Any] = type(self._list[0])
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            self._folder = self._held.enter_context(new_folder(place) if self._kept else temporary_folder(place))
            try:
                self._columns = columns_of(self._kind, self._folder) | {_TOKENS: Numbers(self._folder, _TOKENS)}
                for column in self._columns.values():
                    column.create()
                for item in self._list:
                    self._write(item)
                self._list = []
            except Unstorable:
                self._drop()

    def _write(self, item: Any) -> None:
        encoded = [(column, column.encoded(getattr(item, name))) for name, column in self._columns.items()]
        with writing(self._folder):
            for column, value in encoded:
                column.write(value)

    def _back_to_list(self, item: T) -> None:
        """Go on with a list, because `item` can't be stored."""
        for column in self._columns.values():
            column.close()
        self._list = [*Compact(self._folder, self._kind, self._count), item]
        self._drop()

    def _drop(self) -> None:
        """Remove what was written, and store nothing more."""
        for column in self._columns.values():
            column.close(complete=False)
        self._columns, self._place = {}, None
        with suppress(Unstorable):
            self._held.__exit__(Unstorable, Unstorable(), None)


def _discard(folder: Path, held: ExitStack) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    held.close()


def content_digest(folder: Path) -> str:
    """Return the SHA-256 over names, sizes and bytes of all files in `folder` but its head."""
    hashed = hashlib.sha256()
    files = sorted(path for path in folder.iterdir() if path.name != HEAD)
    whole = sum(path.stat().st_size for path in files) // 10**6
    done = 0
    for path in files:
        hashed.update(f"{path.name}/{path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(2**22):
                hashed.update(block)
                done += len(block)
                status.doing("checking stored rows, in MB", done // 10**6, whole)
    return hashed.hexdigest()


def stored(folder: Path, kind: type[T]) -> tuple[Compact[T], dict[str, Any]]:
    """Return (items, head) of a store that was kept. Raises `Unreadable` if it isn't whole."""
    head = read_json(folder / HEAD)
    if not isinstance(head, dict) or head.get("digest") != manifest_digest(head) or head.get("version") != VERSION:
        raise Unreadable("has no head that can be read")
    count = head.get("count")
    if type(count) is not int or head.get("content") != content_digest(folder):
        raise Unreadable("was changed or damaged")
    with suppress(OSError):  # what was used last goes last
        os.utime(folder / HEAD)
    return Compact(folder, kind, count), head
