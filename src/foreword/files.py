"""Files that are either complete or absent: write under a temporary name, fsync, rename."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foreword.errors import StorageError

MOST_JSON = 16 * 2**20  # bytes of a JSON file that Foreword itself writes; real ones have a few thousand
_EXCHANGE = 2  # renameat2(2): swap two names in one step
_AT_FDCWD = -100


def cache_folder() -> Path:
    """Return Foreword's cache: `$FOREWORD_CACHE`, else `$XDG_CACHE_HOME/foreword`, else `~/.cache/foreword`."""
    if explicit := os.environ.get("FOREWORD_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foreword"


class Unreadable(ValueError):
    """A file can't be read. The text says why, in a few words without the file's name."""


def read_bytes(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes. Raises `Unreadable`, also for a pipe or a device.

    A larger file is refused before anything is read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise Unreadable(f"can't be opened: {getattr(error, 'strerror', None) or error}") from error
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise Unreadable("is not a regular file")
    with os.fdopen(handle, "rb") as file:
        if found.st_size > most:
            raise Unreadable(f"has {found.st_size:,} bytes; at most {most:,} are read")
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise Unreadable(f"can't be read: {error.strerror or error}") from error
    if len(data) > most:  # it grew in the meantime, or its size is not known (/proc)
        raise Unreadable(f"has more than {most:,} bytes")
    return data


def read_text(path: Path, most: int) -> str:
    """Return the UTF-8 text of a regular file of at most `most` bytes. Raises `Unreadable`."""
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not valid UTF-8 (byte {error.start})") from error


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """Return the value in a JSON file of at most `most` bytes.

    Raises `Unreadable`, also for NaN and infinity, for values nested too deep and for numbers of thousands of digits.
    """
    return parse_json(read_text(path, most))


def parse_json(text: str) -> Any:
    """Return the value of a JSON text. Raises `Unreadable`; see `read_json`."""
    try:
        return json.loads(text, parse_constant=_refused_constant)
    except RecursionError as error:
        raise Unreadable("is nested too deep") from error
    except ValueError as error:  # also JSONDecodeError, and numbers of thousands of digits
        raise Unreadable(f"is not valid JSON: {error}") from error


def _refused_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def fsync(path: Path) -> None:
    """Flush one file or folder entry to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error in writing `path` into a `StorageError` that says what to do."""
    from safetensors import SafetensorError

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
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
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
    `target` at every moment. Raises `StorageError` if something can't be written.
    """
    target = target.absolute()
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.new-", dir=target.parent))
        try:
            yield temporary
            for path in temporary.rglob("*"):
                fsync(path)
            fsync(temporary)
            temporary.chmod(0o755)
            _swap(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def recover(target: Path) -> None:
    """After a crash: remove unfinished writes of `target`, and restore a folder that was moved aside."""
    for aside in target.parent.glob(f".{target.name}.old-*"):
        if not target.exists() and (aside / target.name).exists():
            (aside / target.name).replace(target)
        shutil.rmtree(aside, ignore_errors=True)
    for unfinished in target.parent.glob(f".{target.name}.new-*"):
        shutil.rmtree(unfinished, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder. After a crash the folder is either complete or gone. Raises `StorageError`."""
    aside = path.with_name(f".{path.name}.new-{os.getpid()}-removed")
    with writing(path):
        path.replace(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _swap(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`, and remove what was there."""
    if not target.exists():
        temporary.replace(target)
        fsync(target.parent)
    elif _exchange(temporary, target):
        fsync(target.parent)
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        _swap_in_two_steps(temporary, target)


def _exchange(temporary: Path, target: Path) -> bool:
    """Exchange two names atomically. Return False if the system can't."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(temporary), os.fsencode(target)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0)


def _swap_in_two_steps(temporary: Path, target: Path) -> None:
    """Move `target` aside, then rename `temporary` to it. `recover` repairs a crash between the two."""
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    target.replace(aside / target.name)
    try:
        temporary.replace(target)
    except BaseException:
        (aside / target.name).replace(target)
        aside.rmdir()
        raise
    fsync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def free_name(stem: Path) -> Path:
    """Return `stem`-1, or `stem` with the first higher number that is not taken."""
    number = 1
    while (path := stem.with_name(f"{stem.name}-{number}")).exists():
        number += 1
    return path
