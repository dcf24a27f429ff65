"""Files that are either complete or absent: write under a temporary name, fsync, rename. And reading small ones."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foreword.errors import OldFormatWarning, StorageError
from foreword.folders import clear, settle, swap, temporary_file, temporary_folder
from foreword.folders import fsync as fsync

# Bytes of a JSON file that Foreword itself writes; real ones have a few thousand. Parsed, a byte can take 25 of memory.
MOST_JSON = 2 * 2**20
_DEEPEST = 100  # lists and objects within each other


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
            data = file.read(found.st_size + 1)
            if len(data) > found.st_size:  # it grew in the meantime, or its size is not known (/proc)
                data += file.read(most + 1 - len(data))
        except MemoryError as error:
            raise Unreadable(f"has {found.st_size:,} bytes, for which there is no memory") from error
        except OSError as error:
            raise Unreadable(f"can't be read: {error.strerror or error}") from error
    if len(data) > most:
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

    Raises `Unreadable`, also for NaN and infinity, for values nested too deep, for numbers of thousands of digits, for
    text that UTF-8 can't hold, and for a name that an object has twice.
    """
    return _parsed(read_text(path, most), _unique)


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
    if text.count("[") + text.count("{") > _DEEPEST and _depth(value) > _DEEPEST:
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
    while level and depth <= _DEEPEST:
        inner = [item for item in level if isinstance(item, list | dict)]
        level = [part for item in inner for part in (item.values() if isinstance(item, dict) else item)]
        depth += bool(inner)
    return depth


def _require_text(value: Any) -> None:
    """Raise `Unreadable` for half of a surrogate pair."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Unreadable("holds half of a surrogate pair, which is no text") from error


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 over all of a manifest but its own `digest`: JSON with sorted names and without spaces."""
    covered = {name: value for name, value in manifest.items() if name != "digest"}
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return `manifest` as it will be read again, with its digest.

    Raises `Unreadable` if it couldn't be: for what JSON doesn't know, names that are no text, NaN, and too much of it.
    """
    _require_names(manifest)
    try:
        text = json.dumps(manifest, indent=2, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Unreadable(f"can't be stored as JSON: {error}") from error
    if len(text) > MOST_JSON - 100:
        raise Unreadable(f"has {len(text):,} bytes; at most {MOST_JSON:,} are read again")
    plain: dict[str, Any] = parse_json(text)
    return plain | {"digest": manifest_digest(plain)}


def _require_names(value: Any, depth: int = 0) -> None:
    """Raise `Unreadable` for an object with a name that is not text: JSON would change it silently."""
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise Unreadable(f"can't be stored as JSON: the name {name!r:.40} is not text")
    if isinstance(value, Mapping | list | tuple) and depth <= _DEEPEST:
        for part in value.values() if isinstance(value, Mapping) else value:
            _require_names(part, depth + 1)


def note_old_format(file: Path, covered: str) -> None:
    """Warn that `file` has an older format, whose digest covers no more than `covered`."""
    warnings.warn(
        f"{file} has an older format, whose digest covers {covered} alone; save it again to protect all of it",
        OldFormatWarning,
        stacklevel=3,
    )


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
