"""A place that is a local folder: versions appear by one rename, readers and writers hold them by locks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from foreword.errors import ConfigError, PrefixFormatError, StorageError
from foreword.files import Unreadable, remove_folder, write_text, writing
from foreword.folders import clear_inside, fsync, is_at, locked, settle, temporary_folder
from foreword.versions import tags as tag_objects
from foreword.versions.checking import problems_of
from foreword.versions.inside import open_inside, read_inside
from foreword.versions.names import Reference, allowed_name, allowed_tag, is_digest
from foreword.versions.opening import read_version
from foreword.versions.place import ANYTHING, PREFIXES, TAGS, VERSIONS, Expected, Place, parts_of, require_expected
from foreword.versions.tags import SUFFIX, Tag
from foreword.versions.version import FILE, Version, as_json

_TRIES = 20


class LocalPlace(Place):
    """`Place` in the folder `root`, which is made when something is added."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()
        self.url = str(root)

    def names(self) -> list[str]:
        found = (
            f"{team}/{task}"
            for team in _entries(self.root / PREFIXES)
            for task in _entries(self.root / PREFIXES / team)
            if _entries(self._folder(f"{team}/{task}", VERSIONS)) or _entries(self._folder(f"{team}/{task}", TAGS))
        )
        return sorted(filter(allowed_name, found))

    def digests(self, name: str) -> list[str]:
        return sorted(digest for digest in _entries(self._folder(name, VERSIONS)) if is_digest(digest))

    def version(self, name: str, digest: str) -> Version:
        if digest not in self.digests(name):
            raise self.unknown(Reference(name, digest=digest), [])
        return self._named(name, digest)

    def _named(self, name: str, digest: str) -> Version:
        """Return what version.json says. Raises `PrefixFormatError`, also for a version of another name."""
        version = read_version(self._version(name, digest))
        if version.name != name:
            raise PrefixFormatError(f"{self._version(name, digest)} is a version of {version.name}; add it again")
        return version

    def publish(self, version: Version, folder: Path) -> bool:
        target = self._version(version.name, version.digest)
        with writing(target):
            self._make(target.parent)
            clear_inside(target.parent)
            with temporary_folder(target) as temporary:
                for name in version.files:
                    (temporary / name).parent.mkdir(exist_ok=True)
                    shutil.copyfile(folder / name, temporary / name)
                (temporary / FILE).write_bytes(as_json(version))
                settle(temporary)
                return self._moved(temporary, target, version)

    def _moved(self, temporary: Path, target: Path, version: Version) -> bool:
        """Rename a complete version into its place. Return False if a good one is there; a damaged one is replaced."""
        if wrong := problems_of(temporary, version.digest):
            raise PrefixFormatError(f"{version.name}: {wrong[0]}; the files changed while they were added")
        for _ in range(_TRIES):
            with suppress(OSError):
                os.rename(temporary, target)  # fails where there is a folder with something in it
                fsync(target.parent)
                return True
            if not target.is_dir() or not problems_of(target, version.digest):
                break
            remove_folder(target)
        if not target.is_dir():
            os.rename(temporary, target)
            return True
        shutil.rmtree(temporary)
        return False

    @contextmanager
    def reading(self, name: str, digest: str) -> Iterator[Path]:
        with self._held(name, digest) as folder:
            self._named(name, digest)
            yield folder

    @contextmanager
    def _held(self, name: str, digest: str, exclusive: bool = False) -> Iterator[Path]:
        """Hold a version, shared or alone. Raises `UnknownPrefixError`; `BlockingIOError` if it can't be had alone."""
        folder = self._version(name, digest)
        for _ in range(_TRIES):
            handle = self._opened(name, digest)
            try:
                with locked(handle, exclusive=exclusive):
                    if is_at(handle, folder / FILE):  # else it was removed before it was locked
                        yield folder
                        return
            finally:
                os.close(handle)
        raise self.unknown(Reference(name, digest=digest), sorted(self.tags(name)))

    def _opened(self, name: str, digest: str) -> int:
        """Open a version's version.json. Raises `UnknownPrefixError`, `PrefixFormatError`."""
        try:
            return open_inside(self.root, parts_of(name, VERSIONS, digest, FILE))
        except Unreadable as error:
            file = self._version(name, digest) / FILE
            if os.path.lexists(file):
                raise PrefixFormatError(f"{file} {error}") from error
            raise self.unknown(Reference(name, digest=digest), sorted(self.tags(name))) from error

    def tags(self, name: str) -> dict[str, Tag]:
        found = {}
        for file in sorted(_entries(self._folder(name, TAGS))):
            tag = file.removesuffix(SUFFIX)
            if file.endswith(SUFFIX) and allowed_tag(tag) and (read := self._tag(name, tag)) is not None:
                found[tag] = read
        return found

    def _tag(self, name: str, tag: str) -> Tag | None:
        """Return a tag, or None if there is none."""
        file = self._folder(name, TAGS) / f"{tag}{SUFFIX}"
        try:
            data = read_inside(self.root, parts_of(name, TAGS, f"{tag}{SUFFIX}"), tag_objects.MOST)
        except Unreadable as error:
            if not os.path.lexists(file):
                return None
            raise PrefixFormatError(f"{file} {error}") from error
        return tag_objects.parsed(data, str(file), name, tag)

    def set_tag(self, tag: Tag, expected: Expected = ANYTHING) -> None:
        with self._held(tag.name, tag.digest), self._tags_alone(tag.name) as folder:
            if expected is not ANYTHING:
                current = self._tag(tag.name, tag.tag)
                require_expected(tag, None if current is None else current.digest, expected)
            write_text(folder / f"{tag.tag}{SUFFIX}", tag_objects.as_json(tag).decode())

    def remove_tag(self, name: str, tag: str) -> None:
        if self._tag(name, tag) is None:
            raise self.unknown(Reference(name, tag), sorted(self.tags(name)))
        with self._tags_alone(name) as folder, writing(folder):
            (folder / f"{tag}{SUFFIX}").unlink(missing_ok=True)

    @contextmanager
    def _tags_alone(self, name: str) -> Iterator[Path]:
        """Keep other writers of tags of `name` waiting. Yield their folder."""
        folder = self._folder(name, TAGS)
        with writing(folder):
            self._make(folder)
            handle = os.open(folder, os.O_RDONLY)
        try:
            with locked(handle, exclusive=True, wait=True):
                yield folder
        finally:
            os.close(handle)

    def collect(self, name: str, keeps: Callable[[Version], bool], dry: bool) -> Iterator[tuple[str, str]]:
        for digest in self.digests(name):
            if self.is_tagged(name, digest) or keeps(self.version(name, digest)):
                continue
            if dry:
                yield digest, "would be removed"
                continue
            try:
                self.remove_version(name, digest)
            except ConfigError as error:
                yield digest, f"stays: {error}"
            else:
                yield digest, "removed"
        for folder in (VERSIONS, TAGS):
            clear_inside(self._folder(name, folder))

    def remove_version(self, name: str, digest: str) -> None:
        try:
            with self._held(name, digest, exclusive=True) as folder:
                self.require_untagged(name, digest)
                remove_folder(folder)
        except BlockingIOError as error:
            raise ConfigError("version", f"{name}@{digest[:12]} is being read; try again later") from error

    def problems(self, name: str, digest: str) -> list[str]:
        return problems_of(self._version(name, digest), digest)

    def _make(self, folder: Path) -> None:
        """Make a folder in the store. Raises `PrefixFormatError` if a link leads out of it."""
        folder.mkdir(parents=True, exist_ok=True)
        if folder.resolve() != self.root.resolve() / folder.relative_to(self.root):
            raise PrefixFormatError(f"{folder} lies behind a link, which a store does not follow; remove the link")

    def _folder(self, name: str, kind: str) -> Path:
        return self.root.joinpath(*parts_of(name, kind))

    def _version(self, name: str, digest: str) -> Path:
        return self._folder(name, VERSIONS) / digest


def _entries(folder: Path) -> list[str]:
    """Return the names in a folder that are no links; [] if there is no folder. Raises `StorageError`."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if not entry.is_symlink()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(f"{folder} can't be read: {error.strerror or error}; mend the rights") from error
