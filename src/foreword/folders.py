"""Temporary files and folders beside a target: locked while their writer lives, cleared away when it is dead.

Their names are `.<target>.new-<random>` (being written) and `.<target>.old-<random>` (moved aside). A writer holds a
flock on its own, which ends with the process. Where the system has no flock, nothing is ever cleared away.
"""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")
_TEMPORARY = re.compile(r"\.(?P<target>.+)\.(?P<kind>new|old)-[\w-]+", re.DOTALL)
_TRIES = 30  # of a reader whose folder changes under it, and of a writer for a name of its own
_EXCHANGE = 2  # renameat2(2): swap two names in one step
_AT_FDCWD = -100


def is_temporary(name: str) -> bool:
    """Return True if `name` is that of an unfinished write."""
    return _TEMPORARY.fullmatch(name) is not None


def fsync(path: Path) -> None:
    """Flush one file or folder entry to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def temporary_folder(target: Path, kind: str = "new") -> Iterator[Path]:
    """Yield a new folder beside `target`, locked while the block lasts; after an error it is removed.

    Its rights are those that the umask leaves, without any that the parent folder lacks.
    """
    folder, handle = _made(target, kind, _make_folder)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(handle)


@contextmanager
def temporary_file(target: Path) -> Iterator[tuple[Path, int]]:
    """Yield (path, handle to write to) of a new file beside `target`, as `temporary_folder` does."""
    path, handle = _made(target, "new", _make_file)
    try:
        yield path, handle
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def settle(folder: Path) -> None:
    """Give all that is in `folder` the rights of `folder`, files without those to execute, and flush it to the disk."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    for path in folder.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & 0o666)
        fsync(path)
    fsync(folder)


def clear(target: Path) -> None:
    """Remove what dead writers of `target` left, and put back a folder that they had moved aside."""
    for path in _temporaries(target.parent):
        match = _TEMPORARY.fullmatch(path.name)
        if match is not None and match["target"] == target.name:
            _clear_one(path, target if match["kind"] == "old" else None)


def clear_inside(folder: Path) -> None:
    """Remove what dead writers of anything in `folder` left."""
    for path in _temporaries(folder):
        _clear_one(path, None)


def swap(temporary: Path, target: Path) -> None:
    """Rename the folder `temporary` to `target`, and remove what was there."""
    if not target.exists():
        temporary.replace(target)
        fsync(target.parent)
    elif _exchange(temporary, target):
        fsync(target.parent)
        _discard(temporary)
    else:
        _swap_in_two_steps(temporary, target)


def _discard(path: Path) -> None:
    """Remove a folder, or a link to one."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def reread(watched: Sequence[Path], read: Callable[[], T], errors: tuple[type[Exception], ...]) -> T:
    """Return `read()`. If it raises one of `errors` and what it reads has changed meanwhile, read again, a few times.

    watched: a folder that a writer may replace, then the files in it.
    """
    for attempt in range(_TRIES):
        before = _state(watched)
        try:
            return read()
        except errors:
            after = _state(watched)
            if after == before and not (after[0] is None and _moved_aside(watched[0])):
                raise
            time.sleep(0.001 * attempt)
    return read()


def _state(paths: Sequence[Path]) -> list[tuple[int, ...] | None]:
    """Return what tells one state of files and folders from another; None for what can't be found."""
    state: list[tuple[int, ...] | None] = []
    for path in paths:
        try:
            found = path.stat()
            state.append((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
        except (OSError, ValueError):
            state.append(None)
    return state


def _moved_aside(folder: Path) -> bool:
    """Return True if a writer that can't swap in one step has moved `folder` aside."""
    names = (_TEMPORARY.fullmatch(path.name) for path in _temporaries(folder.parent))
    return any(match is not None and match["target"] == folder.name and match["kind"] == "old" for match in names)


def _made(target: Path, kind: str, make: Callable[[Path], int]) -> tuple[Path, int]:
    """Make something new beside `target` and lock it. Return (path, handle)."""
    for _ in range(_TRIES):
        path = target.with_name(f".{target.name}.{kind}-{secrets.token_hex(4)}")
        with suppress(FileExistsError):
            handle = make(path)
            if _lock(handle) is not False and is_at(handle, path):
                _narrow(handle, path)
                return path, handle
            os.close(handle)  # someone who clears up came between
    raise FileExistsError(f"no name for a temporary of {target.name} is free")


def _make_folder(path: Path) -> int:
    os.mkdir(path, 0o777)
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:  # someone who clears up came between: another name is tried
        raise FileExistsError(str(error)) from error


def _make_file(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)


def _narrow(handle: int, path: Path) -> None:
    """Take the rights from `path` that its parent folder doesn't give; those of the owner stay."""
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    narrow = mode & (path.parent.stat().st_mode | ~0o077)
    if narrow != mode:
        path.chmod(narrow)


def _lock(handle: int) -> bool | None:
    """Lock an open file or folder. Return False if another process holds it, None if nothing can be locked here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def is_at(handle: int, path: Path) -> bool:
    """Return True if an open file is the one at `path`, which is no link."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat(follow_symlinks=False))
    except OSError:
        return False


def _temporaries(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [folder / entry.name for entry in entries if is_temporary(entry.name)]
    except (OSError, ValueError):
        return []


def _clear_one(path: Path, moved_from: Path | None) -> None:
    """Remove `path` unless its writer lives. moved_from: where the folder in it belongs, if there is none now."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    with suppress(OSError):
        handle = os.open(path, flags)
        try:
            if not _lock(handle) or not is_at(handle, path):
                return
            if moved_from is not None and not moved_from.exists() and (path / moved_from.name).exists():
                (path / moved_from.name).replace(moved_from)
            if stat.S_ISDIR(os.fstat(handle).st_mode):
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        finally:
            os.close(handle)


def _exchange(temporary: Path, target: Path) -> bool:
    """Exchange two names atomically. Return False if the system can't."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(temporary), os.fsencode(target)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0)


def _swap_in_two_steps(temporary: Path, target: Path) -> None:
    """Move `target` aside, then rename `temporary` to it. `clear` repairs a crash between the two."""
    with temporary_folder(target, "old") as aside:
        target.replace(aside / target.name)
        try:
            temporary.replace(target)
        except BaseException:
            (aside / target.name).replace(target)
            raise
        fsync(target.parent)
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def locked(handle: int, *, exclusive: bool, wait: bool = False) -> Iterator[None]:
    """Hold a lock on an open file or folder while the block lasts; where the system has none, hold nothing.

    A shared lock is waited for. Raises `BlockingIOError` if an exclusive one can't be had, unless `wait`.
    """
    if fcntl is None:
        yield
        return
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(handle, kind if wait or not exclusive else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        yield
        return
    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)
