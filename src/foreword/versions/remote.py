"""A place that fsspec reaches (S3, memory, …). Files come first, version.json last: without it a version is not there.

What a version consists of never changes, so copies of it in Foreword's cache are good for ever; they are checked by the
version's digest. Where the place has conditional writes, one of several writers of a version wins; elsewhere they write
the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from foreword import status
from foreword.errors import ConfigError, PrefixFormatError, TagConflictError
from foreword.files import cache_folder
from foreword.versions import tags as tag_objects
from foreword.versions.checking import problems_in
from foreword.versions.local import LocalPlace
from foreword.versions.names import Reference, allowed_name, allowed_tag, is_digest
from foreword.versions.objects import Objects
from foreword.versions.place import ANYTHING, PREFIXES, TAGS, VERSIONS, Expected, Place, parts_of, require_expected
from foreword.versions.tags import SUFFIX, Tag
from foreword.versions.version import FILE, MOST, Version, as_json, parsed

GARBAGE = "gc"
WAIT = 3600.0  # seconds between the mark of a version and its removal: a reader has that long to finish


class RemotePlace(Place):
    """`Place` at an fsspec URL. options: fsspec's storage options, such as `endpoint_url`."""

    def __init__(self, url: str, options: dict[str, Any] | None = None) -> None:
        self.url = url.rstrip("/")
        self._objects = Objects(self.url, options or {})
        self._cache = LocalPlace(cache_folder() / "store")

    def names(self) -> list[str]:
        teams = self._objects.names(PREFIXES)
        found = (f"{team}/{task}" for team in teams for task in self._objects.names(PREFIXES, team))
        return sorted(filter(allowed_name, found))

    def digests(self, name: str) -> list[str]:
        found = filter(is_digest, self._objects.names(*parts_of(name, VERSIONS)))
        return [digest for digest in found if FILE in self._objects.names(*parts_of(name, VERSIONS, digest))]

    def version(self, name: str, digest: str) -> Version:
        if (kept := self._kept(name, digest)) is not None:
            return kept
        where = f"{self.url}/{'/'.join(parts_of(name, VERSIONS, digest, FILE))}"
        version = parsed(self._version_file(name, digest), where, digest)
        if version.name != name:
            raise PrefixFormatError(f"{where} is a version of {version.name}; add it again")
        return version

    def _version_file(self, name: str, digest: str) -> bytes:
        """Return the bytes of version.json. Raises `UnknownPrefixError`."""
        data = self._objects.read(*parts_of(name, VERSIONS, digest, FILE), most=MOST)
        if data is None:
            raise self.unknown(Reference(name, digest=digest), sorted(self.tags(name)))
        return data

    def _kept(self, name: str, digest: str) -> Version | None:
        """Return the version if the cache has it."""
        if digest not in self._cache.digests(name):
            return None
        try:
            return self._cache.version(name, digest)
        except PrefixFormatError:
            return None  # it will be fetched again

    def publish(self, version: Version, folder: Path) -> bool:
        parts = parts_of(version.name, VERSIONS, version.digest)
        if self._objects.read(*parts, FILE, most=MOST) is not None and not self.problems(version.name, version.digest):
            return False
        for name in version.files:
            status.doing(f"sending {version.name}: {name}")
            self._objects.write(*parts, *name.split("/"), data=(folder / name).read_bytes())
        created = self._objects.create(*parts, FILE, data=as_json(version))
        if not created and self.problems(version.name, version.digest):
            self._objects.write(*parts, FILE, data=as_json(version))
        return created

    @contextmanager
    def reading(self, name: str, digest: str) -> Iterator[Path]:
        if self._kept(name, digest) is None or self._cache.problems(name, digest):
            self._fetch(name, digest)
        with self._cache.reading(name, digest) as folder:
            yield folder

    def _fetch(self, name: str, digest: str) -> None:
        """Copy a version into the cache, checked. Raises `UnknownPrefixError`, `PrefixFormatError`."""
        version, parts = self.version(name, digest), parts_of(name, VERSIONS, digest)
        with TemporaryDirectory(prefix="foreword-") as temporary:
            folder = Path(temporary)
            for file, known in version.files.items():
                status.doing(f"fetching {name}: {file}")
                data = self._objects.read(*parts, *file.split("/"), most=known.size)
                if data is None:
                    raise PrefixFormatError(f"{self.url}: {name}@{digest[:12]} lacks {file}; push it again")
                (folder / file).parent.mkdir(exist_ok=True)
                (folder / file).write_bytes(data)
            self._cache.publish(version, folder)

    def tags(self, name: str) -> dict[str, Tag]:
        found = {}
        for file in self._objects.names(*parts_of(name, TAGS)):
            tag = file.removesuffix(SUFFIX)
            if file.endswith(SUFFIX) and allowed_tag(tag) and (data := self._tag(name, tag)) is not None:
                found[tag] = tag_objects.parsed(data, f"{self.url}: {name}@{tag}", name, tag)
        return found

    def _tag(self, name: str, tag: str) -> bytes | None:
        return self._objects.read(*parts_of(name, TAGS, f"{tag}{SUFFIX}"), most=tag_objects.MOST)

    def set_tag(self, tag: Tag, expected: Expected = ANYTHING) -> None:
        parts, data = parts_of(tag.name, TAGS, f"{tag.tag}{SUFFIX}"), tag_objects.as_json(tag)
        before = self._tag(tag.name, tag.tag)
        current = None if before is None else tag_objects.parsed(before, self.url, tag.name, tag.tag).digest
        require_expected(tag, current, expected)
        self._version_file(tag.name, tag.digest)
        if expected is ANYTHING:
            self._objects.write(*parts, data=data)
        elif not self._objects.swap(*parts, data=data, before=before):
            raise TagConflictError(f"{tag.name}@{tag.tag} was moved by another writer meanwhile; look and try again")
        self._version_file(tag.name, tag.digest)  # a collection that came between puts it back, or it is gone

    def remove_tag(self, name: str, tag: str) -> None:
        if self._tag(name, tag) is None:
            raise self.unknown(Reference(name, tag), sorted(self.tags(name)))
        self._objects.remove(*parts_of(name, TAGS, f"{tag}{SUFFIX}"))

    def collect(self, name: str, keeps: Callable[[Version], bool], dry: bool) -> Iterator[tuple[str, str]]:
        """Mark what nobody needs; remove what was marked `WAIT` seconds ago, so that its readers have finished."""
        for digest in filter(is_digest, self._objects.names(*parts_of(name, VERSIONS))):
            mark = (GARBAGE, f"{digest}.mark")
            whole = FILE in self._objects.names(*parts_of(name, VERSIONS, digest))
            if self.is_tagged(name, digest) or (whole and keeps(self.version(name, digest))):
                self._objects.remove(*mark)
                continue
            since = _marked(self._objects.read(*mark, most=100))
            if dry:
                yield digest, "would be removed"
            elif since is None:
                self._objects.write(*mark, data=repr(time.time()).encode())
                yield digest, f"marked; a collection after {WAIT / 60:.0f} minutes removes it"
            elif time.time() - since < WAIT:
                yield digest, f"marked; a collection in {(WAIT - time.time() + since) / 60:.0f} minutes removes it"
            else:
                yield digest, self._removed(name, digest)
                self._objects.remove(*mark)

    def _removed(self, name: str, digest: str) -> str:
        """Take a version back, then look once more whether a tag means it. Return what was done."""
        parts = parts_of(name, VERSIONS, digest)
        data = self._objects.read(*parts, FILE, most=MOST)
        self._objects.remove(*parts, FILE)
        if data is not None and self.is_tagged(name, digest):
            self._objects.write(*parts, FILE, data=data)
            return "stays: a tag was moved to it"
        self._objects.remove(*parts)
        return "removed"

    def remove_version(self, name: str, digest: str) -> None:
        self._version_file(name, digest)
        self.require_untagged(name, digest)
        if self._removed(name, digest) != "removed":
            raise ConfigError("version", f"{name}@{digest[:12]} has a tag since now; move or remove the tag first")

    def problems(self, name: str, digest: str) -> list[str]:
        parts = parts_of(name, VERSIONS, digest)
        try:
            version = parsed(self._version_file(name, digest), f"{self.url}: {name}@{digest[:12]}", digest)
        except PrefixFormatError as error:
            return [str(error)]
        return problems_in(version, lambda file, most: self._objects.read(*parts, *file.split("/"), most=most))


def _marked(data: bytes | None) -> float | None:
    try:
        return None if data is None else float(data)
    except ValueError:
        return None
