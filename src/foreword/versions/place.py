"""Where versions and tags are kept. Two places know how: a local folder, and anything that fsspec reaches.

    prefixes/TEAM/TASK/versions/DIGEST/…     see `version`; complete as soon as its version.json can be seen
    prefixes/TEAM/TASK/tags/TAG.json         see `tags`
    gc/…                                     remote places: what the next collection may remove

There is no index: what a store holds is what lies in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from foreword.errors import ConfigError, TagConflictError, UnknownPrefixError
from foreword.versions.names import Reference
from foreword.versions.tags import Tag
from foreword.versions.version import Version

PREFIXES, VERSIONS, TAGS = "prefixes", "versions", "tags"


class _Any:
    """No expectation."""


ANYTHING = _Any()
Expected = str | None | _Any  # a digest, None: no such tag yet, ANYTHING: whatever there is


class Place(ABC):
    """Versions and tags by name. url: how the place is called. Names, tags and digests are checked by the caller.

    Methods raise `StorageError` if the place can't be reached or written, `PrefixFormatError` for damaged objects.
    """

    url: str

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names that have a version or a tag, in order."""

    @abstractmethod
    def digests(self, name: str) -> list[str]:
        """Return the digests of the complete versions of `name`, in order."""

    @abstractmethod
    def version(self, name: str, digest: str) -> Version:
        """Return what version.json says. Raises `UnknownPrefixError` if there is no such version."""

    @abstractmethod
    def publish(self, version: Version, folder: Path) -> bool:
        """Add the version whose files are in `folder`. Return False if it was there already.

        It can be seen when it is complete, not before. One that is there but damaged is replaced.
        """

    @abstractmethod
    def reading(self, name: str, digest: str) -> AbstractContextManager[Path]:
        """Return a local folder of the version, which stays while the block lasts. Raises `UnknownPrefixError`."""

    @abstractmethod
    def tags(self, name: str) -> dict[str, Tag]:
        """Return the tags of `name`. Damaged ones raise."""

    @abstractmethod
    def set_tag(self, tag: Tag, expected: Expected = ANYTHING) -> None:
        """Let a tag mean a version that there is. Raises `TagConflictError` unless it meant `expected` until now."""

    @abstractmethod
    def remove_tag(self, name: str, tag: str) -> None:
        """Remove a tag. Raises `UnknownPrefixError` if there is none."""

    @abstractmethod
    def collect(self, name: str, keeps: Callable[[Version], bool], dry: bool) -> Iterator[tuple[str, str]]:
        """Remove versions that no tag means, that nobody reads, and that `keeps` returns False for.

        Yield (digest, what was done) of each such version. dry: remove nothing.
        """

    @abstractmethod
    def remove_version(self, name: str, digest: str) -> None:
        """Remove one version. Raises `ConfigError` if a tag means it or it is being read."""

    @abstractmethod
    def problems(self, name: str, digest: str) -> list[str]:
        """Read every byte of a version and return what is wrong with it."""

    def find(self, reference: Reference) -> str:
        """Return the digest of a reference. Raises `UnknownPrefixError`, which says what there is."""
        if reference.tag is not None:
            tags = self.tags(reference.name)
            if reference.tag in tags:
                return tags[reference.tag].digest
            raise self.unknown(reference, sorted(tags))
        found = [digest for digest in self.digests(reference.name) if digest.startswith(str(reference.digest))]
        if len(found) > 1:
            raise ConfigError("digest", f"{reference} could be {len(found)} versions; give more of its digits")
        if not found:
            raise self.unknown(reference, sorted(self.tags(reference.name)))
        return found[0]

    def is_tagged(self, name: str, digest: str) -> bool:
        """Return True if a tag means this version."""
        return any(tag.digest == digest for tag in self.tags(name).values())

    def require_untagged(self, name: str, digest: str) -> None:
        """Raise `ConfigError` that names the tag which means this version."""
        if tags := [tag for tag, found in self.tags(name).items() if found.digest == digest]:
            raise ConfigError("version", f"{name}@{digest[:12]} is {tags[0]}; move or remove the tag first")

    def unknown(self, reference: Reference, tags: list[str]) -> UnknownPrefixError:
        """Return the error for a reference that is not there."""
        known = f"it has the tags {', '.join(tags[:8])}" if tags else "foreword store list shows what there is"
        return UnknownPrefixError(f"the store {self.url} has no {reference}; {known}")


def require_expected(tag: Tag, current: str | None, expected: Expected) -> None:
    """Raise `TagConflictError` unless a tag means `expected` until now."""
    if isinstance(expected, _Any) or current == expected:
        return
    said = "is not there" if current is None else f"means {current[:12]}"
    wanted = "was not there" if expected is None else f"meant {expected[:12]}"
    raise TagConflictError(f"{tag.name}@{tag.tag} {said}, but it was to be moved if it {wanted}; look and try again")


def parts_of(name: str, *more: str) -> tuple[str, ...]:
    """Return the components of a path in a place."""
    return (PREFIXES, *name.split("/"), *more)
