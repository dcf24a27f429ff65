"""How the files of a folder are read: those of a stored version are held to the version's digests.

A version's folder is called by its digest. Each file is read once, from one descriptor; its bytes are hashed and then
used, so that nothing can come between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from foreword.errors import PrefixFormatError
from foreword.files import FolderFiles, Unreadable
from foreword.versions.inside import read_inside
from foreword.versions.names import is_digest
from foreword.versions.version import FILE, MOST, Stored, Version, parsed

FOLDER = "versions"  # a version's folder lies in a folder of this name


class VersionFiles(FolderFiles):
    """The files of one part of a version, such as `prefix`.

    Raises `Unreadable` for a file that is not as version.json says, `PrefixFormatError` for a damaged version.json.
    """

    def __init__(self, version: Path, part: str) -> None:
        super().__init__(version / part)
        self._version, self._part = version, part

    @cached_property
    def _known(self) -> Mapping[str, Stored]:
        return read_version(self._version).files

    def read(self, name: str, most: int) -> bytes:
        known = self._known.get(f"{self._part}/{name}")
        if known is None:
            raise Unreadable("is not named by its version")
        return checked(self._version, f"{self._part}/{name}", known.size, known.sha256, most)


def files_of(folder: Path) -> FolderFiles:
    """Return how the files in `folder` are read: a part of a stored version, or any other folder."""
    return VersionFiles(folder.absolute().parent, folder.name) if in_version(folder) else FolderFiles(folder)


def in_version(folder: Path) -> bool:
    """Return True if `folder` is a part of a stored version, such as its prefix."""
    version = folder.absolute().parent
    return is_digest(version.name) and version.parent.name == FOLDER


def read_version(folder: Path, digest: str | None = None) -> Version:
    """Return the version in `folder`. digest: its own; None: the folder's name. Raises `PrefixFormatError`."""
    where = folder / FILE
    try:
        data = read_inside(folder.parent, (folder.name, FILE), MOST)
    except Unreadable as error:
        raise PrefixFormatError(f"{where} {error}") from error
    return parsed(data, str(where), digest or folder.name)


def checked(version: Path, name: str, size: int, sha256: str, most: int) -> bytes:
    """Return the bytes of a version's file, if they are those that were stored. Raises `Unreadable`."""
    if size > most:
        raise Unreadable(f"has {size:,} bytes; at most {most:,} are read")
    data = read_inside(version.parent, (version.name, *name.split("/")), size)
    if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
        raise Unreadable("was changed or damaged: it is not what the version's digest covers")
    return data
