"""Whether every byte of a version is the one that was stored."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from foreword.errors import PrefixFormatError
from foreword.files import Unreadable
from foreword.versions.opening import checked, read_version
from foreword.versions.version import FILE, MOST_FILE, Version


def problems_of(folder: Path, digest: str) -> list[str]:
    """Return what is wrong with the version in `folder`, which must have this digest. Every byte is read."""
    try:
        version = read_version(folder, digest)
    except PrefixFormatError as error:
        return [str(error)]
    return [*_damaged(folder, version), *_surplus(folder, version)]


def problems_in(version: Version, read: Callable[[str, int], bytes | None]) -> list[str]:
    """Return what is wrong with a version's files. read: a file's bytes, at most so many, or None if it isn't there."""
    found = []
    for name, known in version.files.items():
        data = read(name, MOST_FILE)
        if data is None:
            found.append(f"{version.name}@{version.digest[:12]}: {name} is not there")
        elif len(data) != known.size or hashlib.sha256(data).hexdigest() != known.sha256:
            found.append(f"{version.name}@{version.digest[:12]}: {name} was changed or damaged")
    return found


def _damaged(folder: Path, version: Version) -> list[str]:
    found = []
    for name, known in version.files.items():
        try:
            checked(folder, name, known.size, known.sha256, MOST_FILE)
        except Unreadable as error:
            found.append(f"{folder / name} {error}")
    return found


def _surplus(folder: Path, version: Version) -> list[str]:
    """Name what lies in the folder and belongs to nothing."""
    known = {FILE, *version.files}
    found = []
    for path, folders, files in os.walk(folder):
        inner = Path(path).relative_to(folder)
        links = [name for name in folders if (Path(path) / name).is_symlink()]
        found += [str(inner / name) for name in (*files, *links) if (inner / name).as_posix() not in known]
    return [f"{folder / name} is not named by {FILE}; remove it" for name in sorted(found)]
