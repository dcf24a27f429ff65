"""Reading a file inside a folder without leaving it: by descriptors, one component at a time, never through a link.

What is checked is the open file itself: nothing can be put in its place between the check and the reading.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from foreword.files import READ_FLAGS, Unreadable, read_handle

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
_BY_HANDLE = os.open in os.supports_dir_fd
_SAID = {errno.ELOOP: "is a link, which is not followed", errno.ENOTDIR: "lies behind a link or a file"}


def read_inside(root: Path, parts: Sequence[str], most: int) -> bytes:
    """Return the content of the regular file `root/parts…` of at most `most` bytes, read from one descriptor.

    `root` itself may be a link. Raises `Unreadable` for links, hard links, pipes, devices, folders, larger files, and
    for parts that are no plain names.
    """
    return read_handle(open_inside(root, parts), most)


def open_inside(root: Path, parts: Sequence[str]) -> int:
    """Return a descriptor of the file `root/parts…`, as `read_inside` opens it. Raises `Unreadable`."""
    if wrong := [part for part in parts if part in ("", ".", "..") or set(part) & set("/\\\0")]:
        raise Unreadable(f"can't be opened: {wrong[0]!r:.60} is no plain name")
    try:
        handle = _by_handle(root, parts) if _BY_HANDLE else _by_path(root, parts)
    except (OSError, ValueError) as error:
        code = getattr(error, "errno", None) or 0
        raise Unreadable(_SAID.get(code) or f"can't be opened: {getattr(error, 'strerror', None) or error}") from error
    try:
        _require_single(handle)
    except Unreadable:
        os.close(handle)
        raise
    return handle


def _by_handle(root: Path, parts: Sequence[str]) -> int:
    folder = os.open(root, _FOLDER)
    try:
        for part in parts[:-1]:
            inner = os.open(part, _FOLDER | _NO_LINK, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(parts[-1], READ_FLAGS | _NO_LINK, dir_fd=folder)
    finally:
        os.close(folder)


def _by_path(root: Path, parts: Sequence[str]) -> int:
    """Open where the system has no descriptors of folders (Windows): links are looked for first."""
    path = Path(root)
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise OSError(errno.ELOOP, "link")
    return os.open(path, READ_FLAGS)


def _require_single(handle: int) -> None:
    """Raise `Unreadable` unless the open file is a regular one with one name."""
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        raise Unreadable("is not a regular file")
    if found.st_nlink > 1:
        raise Unreadable(f"has {found.st_nlink} names (hard links), so that it could be changed from outside; copy it")
