"""Files of rows as streams of bytes: plain or compressed, with a bound on what a small file may stand for."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from foreword.errors import DataError

MOST_GROWTH = 200  # times its size that a compressed file may stand for; text compresses 3 to 30 times
FREE = 64 * 2**20  # bytes that any file may stand for
COMPRESSED: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".zst")
_BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)


class _Bounded(io.RawIOBase):
    """The bytes of `stream`. Raises `DataError` after `most` of them, or where they can't be decompressed."""

    def __init__(self, stream: Any, path: Path, most: int) -> None:
        self._stream, self._path, self._left = stream, path, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except _BROKEN as error:
            reason = str(error) or type(error).__name__
            raise DataError(f"{self._path}: not readable as {self._path.suffix}: {reason:.200}") from error
        self._left -= len(data)
        if self._left < 0:
            raise DataError(f"{self._path}: stands for more than {MOST_GROWTH} times its size; unpack it yourself")
        buffer[: len(data)] = data
        return len(data)


def data_suffix(path: Path) -> str:
    """Return the suffix that says what a file holds, in lower case: `.jsonl` for `rows.jsonl.gz`."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file, decompressed if its last suffix is .gz, .bz2 or .xz. Raises `DataError`."""
    with path.open("rb") as file:
        if (unpack := COMPRESSED.get(path.suffix.lower())) is None:
            yield file
            return
        most = MOST_GROWTH * path.stat().st_size + FREE
        with unpack(file) as stream, io.BufferedReader(_Bounded(stream, path, most), 2**16) as reader:
            yield cast(BinaryIO, reader)
