"""Files that are either complete or absent: write under a temporary name, fsync, rename."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foreword.errors import StorageError

_EXCHANGE = 2  # renameat2(2): swap two names in one step
_AT_FDCWD = -100


def cache_folder() -> Path:
    """Return Foreword's cache: `$FOREWORD_CACHE`, else `$XDG_CACHE_HOME/foreword`, else `~/.cache/foreword`."""
    if explicit := os.environ.get("FOREWORD_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foreword"


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
