"""Columns of a store of items on the disk: numbers, texts, and tuples of either, one file or more for each.

Files hold plain little-endian numbers and UTF-8, which are mapped into memory when they are read.
"""

from __future__ import annotations

import sys
import typing
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FLUSHED = 2**18  # numbers that a file holds back before it writes them
_TYPES = {"b": np.int8, "i": np.int32, "q": np.int64}
Array = npt.NDArray[Any]


class Unstorable(ValueError):
    """A value has no column, or doesn't fit it."""


class _Series:
    """Numbers of one size in a file: written one after another, then mapped. code: that of the module `array`."""

    def __init__(self, path: Path, code: str) -> None:
        self.path, self.code = path, code
        self.written = 0
        self._file: Any = None
        self._held = array(code)

    def create(self) -> None:
        self._file = self.path.open("xb")

    def write(self, numbers: Sequence[int]) -> None:
        self._held.extend(numbers)
        self.written += len(numbers)
        if len(self._held) >= FLUSHED:
            self._flush()

    def _flush(self) -> None:
        if sys.byteorder == "big":
            self._held.byteswap()
        self._held.tofile(self._file)
        del self._held[:]

    def close(self, complete: bool) -> None:
        if self._file is not None and not self._file.closed:
            try:
                if complete:
                    self._flush()
            finally:
                self._file.close()

    def mapped(self) -> Array:
        kind = np.dtype(_TYPES[self.code]).newbyteorder("<")
        if not self.path.stat().st_size:
            return np.empty(0, kind)
        return np.memmap(self.path, kind, "r").view(np.ndarray)  # a plain array is cut several times as fast


class Column:
    """One field of every item: an array of numbers for each, written one after another and read by number."""

    code = "i"

    def __init__(self, folder: Path, name: str) -> None:
        self._values, self._ends = (
            _Series(folder / f"{name}.{self.code}", self.code),
            _Series(folder / f"{name}.ends", "q"),
        )
        self.all: Array = np.empty(0)
        self._stops: Array = np.empty(0)

    @property
    def paths(self) -> list[Path]:
        return [self._values.path, self._ends.path]

    def create(self) -> None:
        """Make the files."""
        self._values.create()
        self._ends.create()

    def encoded(self, value: Any) -> Any:
        """Return `value` as it is written. Raises `Unstorable`."""
        try:
            return array(self.code, value)
        except OverflowError as error:
            raise Unstorable(str(error)) from error

    def write(self, encoded: Any) -> None:
        """Write the next value."""
        self._values.write(encoded)
        self._ends.write((self._values.written,))

    def close(self, complete: bool = True) -> None:
        """Close the files. complete: write what is held back before."""
        self._values.close(complete)
        self._ends.close(complete)

    def open(self) -> None:
        """Map the files."""
        self.all, self._stops = self._values.mapped(), self._ends.mapped()

    def fits(self, count: int) -> bool:
        """Whether the mapped files hold `count` values, no more and no less."""
        if len(self._stops) != count or len(self.all) != (self._stops[-1] if count else 0):
            return False
        return bool((np.diff(self._stops, prepend=0) >= 0).all())

    def part(self, index: int) -> Array:
        """Return the numbers of value `index`."""
        return self.all[self.start(index) : int(self._stops[index])]

    def start(self, index: int) -> int:
        return int(self._stops[index - 1]) if index else 0

    def get(self, index: int) -> Any:
        """Return value `index`."""
        return tuple(self.part(index).tolist())


def _utf8(text: str) -> array[int]:
    data = array("b")
    try:
        data.frombytes(text.encode())
    except UnicodeEncodeError as error:
        raise Unstorable(str(error)) from error
    return data


class Numbers(Column):
    """Whole numbers of 64 bits."""

    code = "q"

    def encoded(self, value: Any) -> Any:
        return super().encoded((value,))

    def get(self, index: int) -> int:
        return int(self.all[index])


class Texts(Column):
    """Texts, in UTF-8."""

    code = "b"

    def encoded(self, value: Any) -> Any:
        return _utf8(value)

    def get(self, index: int) -> str:
        return self.part(index).tobytes().decode()


class Flags(Column):
    """Tuples of truth values, or None, which is stored as a single 2."""

    code = "b"

    def encoded(self, value: Any) -> Any:
        return super().encoded((2,) if value is None else value)

    def get(self, index: int) -> Any:
        part = self.part(index).tolist()
        return None if part == [2] else tuple(map(bool, part))


class TextLists(Column):
    """Tuples of texts: in UTF-8 one behind another, each with its length before it as eight bytes."""

    code = "b"

    def encoded(self, value: Any) -> Any:
        data = array(self.code)
        for text in value:
            encoded = _utf8(text)
            data.frombytes(len(encoded).to_bytes(8, "little"))
            data.extend(encoded)
        return data

    def get(self, index: int) -> tuple[str, ...]:
        data, texts, at = self.part(index).tobytes(), [], 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            texts.append(data[at + 8 : at + 8 + size].decode())
            at += 8 + size
        return tuple(texts)


_COLUMNS: tuple[tuple[Any, type[Column]], ...] = (
    (int, Numbers), (str, Texts), (tuple[int, ...], Column), (tuple[str, ...], TextLists),
    (tuple[bool, ...] | None, Flags),
)  # fmt: skip


def columns_of(kind: type[Any], folder: Path) -> dict[str, Column]:
    """Return a column for each field of a dataclass. Raises `Unstorable` if it has a field of another type."""
    found: dict[str, Column] = {}
    for name, hint in typing.get_type_hints(kind).items():
        column = next((column for known, column in _COLUMNS if known == hint), None)
        if column is None:
            raise Unstorable(f"{kind.__name__}.{name} is of type {hint}")
        found[name] = column(folder, name)
    return found
