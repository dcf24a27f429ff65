"""Files that are either complete or absent: write under a temporary name, fsync, rename. And reading small ones."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from foreword.errors import StorageError
from foreword.folders import clear, settle, swap, temporary_file, temporary_folder
from foreword.folders import fsync as fsync

# Bytes of a JSON file that Foreword itself writes; real ones have a few thousand. Parsed, a byte can take 25 of memory.
MOST_JSON = 2 * 2**20
READ_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
DEEPEST = 100  # lists and objects within each other
_MOST_PARTS = 100_000  # lists and objects in such a file
_GROWTH = 2**20  # bytes by which a file may grow while it is read


def cache_folder() -> Path:
    """Return Foreword's cache: `$FOREWORD_CACHE`, else `$XDG_CACHE_HOME/foreword`, else `~/.cache/foreword`."""
    if explicit := os.environ.get("FOREWORD_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foreword"


def data_folder() -> Path:
    """Return Foreword's data of this user: `$XDG_DATA_HOME/foreword`, else `~/.local/share/foreword`."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "foreword"


class Unreadable(ValueError):
    """A file can't be read. The text says why, in a few words without the file's name."""


class FolderFiles:
    """The files of one folder, read whole by their names. A subclass can hold them to more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str, most: int) -> bytes:
        """Return the content of a regular file of at most `most` bytes. Raises `Unreadable`."""
        return read_bytes(self.folder / name, most)


def read_bytes(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes. Raises `Unreadable`, also for a pipe or a device.

    A larger file is refused before anything is read.
    """
    return read_handle(_handle(path), most)


def read_handle(handle: int, most: int) -> bytes:
    """Read an open file as `read_bytes` does, and close it."""
    with _regular(handle, most) as (file, size):
        data = file.read(size + 1)
        if len(data) > size:  # it grew in the meantime, or its size is not known (/proc)
            data += file.read(min(_GROWTH, most) + 1)
    if len(data) > min(most, size + _GROWTH):
        raise Unreadable(f"has more bytes than the {size:,} that it should have; at most {most:,} are read")
    return data


def read_lines(path: Path, most: int, longest: int = 2**20) -> Iterator[str]:
    """Yield the lines of a regular UTF-8 file of at most `most` bytes; a last one without a line break is left out.

    Raises `Unreadable`, also for a line of more than `longest` bytes.
    """
    for line in byte_lines(path, most, longest):
        yield _text(line)


def byte_lines(path: Path, most: int, longest: int = 2**20) -> Iterator[bytes]:
    """Yield the lines of a file as `read_lines` does, without their line breaks and not decoded."""
    with _regular(_handle(path), most) as (file, size):
        while line := file.readline(longest + 1):
            size -= len(line)
            if len(line) > longest or size < -_GROWTH:
                raise Unreadable(f"has a line of more than {longest:,} bytes, or no end")
            if line.endswith(b"\n"):
                yield line[:-1]


def _handle(path: Path) -> int:
    """Open a file. Raises `Unreadable`."""
    try:
        return os.open(path, READ_FLAGS)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise Unreadable(f"can't be opened: {getattr(error, 'strerror', None) or error}") from error


@contextmanager
def _regular(handle: int, most: int) -> Iterator[tuple[IO[bytes], int]]:
    """Yield (open file, its size). Raises `Unreadable`, within the block too."""
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise Unreadable("is not a regular file")
    with os.fdopen(handle, "rb") as file:
        if found.st_size > most:
            raise Unreadable(f"has {found.st_size:,} bytes; at most {most:,} are read")
        try:
            yield file, found.st_size
        except MemoryError as error:
            raise Unreadable(f"has {found.st_size:,} bytes, for which there is no memory") from error
        except OSError as error:
            raise Unreadable(f"can't be read: {error.strerror or error}") from error


def read_text(path: Path, most: int) -> str:
    """Return the UTF-8 text of a regular file of at most `most` bytes. Raises `Unreadable`."""
    return _text(read_bytes(path, most))


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not valid UTF-8 (byte {error.start})") from error


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """Return the value in a JSON file of at most `most` bytes.

    Raises `Unreadable`, also for NaN and infinity, for values nested too deep, for numbers of thousands of digits, for
    text that UTF-8 can't hold, for a name that an object has twice, and for more lists and objects than it should have.
    """
    return json_of(read_bytes(path, most))


def json_of(data: bytes) -> Any:
    """Return the value of a JSON file's bytes. Raises `Unreadable`; see `read_json`."""
    text = _text(data)
    if text.count("[") + text.count("{") > _MOST_PARTS:
        raise Unreadable(f"holds more than {_MOST_PARTS:,} lists and objects")
    return _parsed(text, _unique)


def parse_json(text: str) -> Any:
    """Return the value of a JSON text. Raises `Unreadable`; see `read_json`. Of equal names the last counts."""
    return _parsed(text, None)


def _parsed(text: str, pairs: Any) -> Any:
    try:
        value = json.loads(text, parse_constant=_refused_constant, parse_float=_finite, object_pairs_hook=pairs)
    except RecursionError as error:
        raise Unreadable("is nested too deep") from error
    except ValueError as error:  # also JSONDecodeError, and numbers of thousands of digits
        raise Unreadable(f"is not valid JSON: {error}") from error
    if text.count("[") + text.count("{") > DEEPEST and _depth(value) > DEEPEST:
        raise Unreadable("is nested too deep")
    if "\\u" in text:
        _require_text(value)
    return value


def _refused_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text:.20} is too large a number")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(value := dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r:.80} is there twice")
    return value


def _depth(value: Any) -> int:
    """Return how many lists and objects lie within each other; stop counting above the limit."""
    depth, level = 0, [value]
    while level and depth <= DEEPEST:
        inner = [item for item in level if item and isinstance(item, (list, dict))]
        level = [part for item in inner for part in (item.values() if isinstance(item, dict) else item)]
        depth += bool(inner)
    return depth


def _require_text(value: Any) -> None:
    """Raise `Unreadable` for half of a surrogate pair."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Unreadable("holds half of a surrogate pair, which is no text") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error in writing `path` into a `StorageError` that says what to do."""
    from safetensors import SafetensorError

    try:
        os.lstat(path)
    except ValueError as error:
        raise StorageError(f"{str(path)!r} can't be written: no file can have this name") from error
    except OSError:  # it is not there yet
        pass
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip()
        raise StorageError(
            f"{path} can't be written: {reason}; make room or mend the rights, then go on from what is there"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically: readers see either the old file or the new one. Raises `StorageError`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text`, atomically. Raises `StorageError`; a failed write leaves nothing behind."""
    with writing(path):
        clear(path)
        with temporary_file(path) as (temporary, handle):
            with os.fdopen(handle, "w", encoding="utf-8", closefd=False) as file:
                file.write(text)
                file.flush()
                os.fsync(handle)
            temporary.replace(path)
        fsync(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append one line to `path`, completely or not at all. Raises `StorageError`."""
    data = line.encode() + b"\n"
    with writing(path), path.open("ab", buffering=0) as handle:  # with a buffer, closing would write again
        before = handle.tell()
        try:
            if handle.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(handle.fileno(), before)
            raise


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `target`. On success it is renamed to `target`, else it is removed.

    An existing `target` is exchanged in one step if the system can (Linux), so that there is a complete folder
    `target` at every moment. What dead writers of `target` left is removed. Raises `StorageError` if something can't
    be written.
    """
    target = target.absolute()
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        clear(target)
        with temporary_folder(target) as temporary:
            yield temporary
            settle(temporary)
            swap(temporary, target)


def recover(target: Path) -> None:
    """After a crash: remove unfinished writes of `target`, and restore a folder that was moved aside.

    What a living process is writing stays.
    """
    clear(target.absolute())


def remove_folder(path: Path) -> None:
    """Remove a folder. After a crash the folder is either complete or gone. Raises `StorageError`."""
    aside = path.with_name(f".{path.name}.new-removed{secrets.token_hex(4)}")
    with writing(path):
        path.replace(aside)
    shutil.rmtree(aside, ignore_errors=True)


def free_name(stem: Path) -> Path:
    """Return `stem`-1, or `stem` with the first higher number that is not taken."""
    number = 1
    while (path := stem.with_name(f"{stem.name}-{number}")).exists():
        number += 1
    return path
