"""`Store`: a home for prefixes that a team can trust. Versions never change; tags move; there is no index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.errors import ConfigError, PrefixFormatError, UnknownPrefixError
from foreword.shown import Shown
from foreword.store.problem import Problem
from foreword.versions.finding import place_at, version_folder
from foreword.versions.names import LATEST, Reference, check_name, check_tag, parse
from foreword.versions.place import ANYTHING, Expected, Place
from foreword.versions.tags import tag_now
from foreword.versions.version import PREFIX, Version

if TYPE_CHECKING:
    from foreword.prefix import Prefix

KEEP_DAYS = 30
_TRIES = 5


@dataclass(frozen=True, repr=False)
class Entry(Shown):
    """A version in a list. tags: those that mean it, in order."""

    version: Version
    tags: tuple[str, ...]

    def _shown(self) -> tuple[str, dict[str, Any]]:
        title, facts = self.version._shown()
        return title, {"tags": ", ".join(self.tags) or "none"} | dict(list(facts.items())[:3])


class Store:
    """Prefixes by `team/task`, in a local folder or behind an fsspec URL.

        >>> store = foreword.Store("prefixes")
        >>> version = store.add(prefix, "demo/summary", metrics={"bleu": 12.5})
        >>> digest = store.tag("demo/summary", "prod")
        >>> store.load("demo/summary@prod").digest == prefix.digest
        True

    place: a folder, or a URL such as `s3://bucket/prefixes`; None: `$FOREWORD_STORE`, else the user's own.
    options: fsspec's storage options, such as `endpoint_url`.
    A version is there completely or not at all, for every reader at every moment. It never changes; its digest proves
    its bytes. Safe with several threads and processes. Methods raise `ConfigError` for names that are not allowed,
    `UnknownPrefixError` for what isn't there, `PrefixFormatError` for what is damaged, `StorageError` for what can't be
    read or written.
    """

    def __init__(self, place: str | Path | Place | None = None, **options: Any) -> None:
        self._place = place if isinstance(place, Place) else place_at(place, options)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @property
    def url(self) -> str:
        """The folder or URL."""
        return self._place.url

    def add(
        self,
        prefix: Prefix | str | Path,
        name: str,
        *,
        tags: Sequence[str] = (),
        metrics: Mapping[str, float] | None = None,
        licence: str | None = None,
        description: str | None = None,
    ) -> Version:
        """Add a version to `name` (team/task) and let the tags `latest` and `tags` mean it. Return it.

        prefix: a value, a saved prefix's folder, a run's with its head, or a reference to another version.
        The same prefix added again, with the same words about it, is the same version. See `staging.About` for the
        words. Raises `PrefixError` for a record that names the user's home folder.
        """
        from foreword.store.staging import About, staged

        check_name(name)
        for tag in tags:
            check_tag(tag)
        about = About(metrics or {}, licence, description)
        with staged(prefix, name, about) as (version, folder):
            self._publish(version, folder, (LATEST, *tags))
        return version

    def _publish(self, version: Version, folder: Path, tags: Sequence[str]) -> None:
        """Publish a version and set its tags; if a collection came between, publish it again."""
        for attempt in range(_TRIES):
            self._place.publish(version, folder)
            try:
                for tag in tags:
                    self._place.set_tag(tag_now(version.name, tag, version.digest))
            except UnknownPrefixError:
                if attempt == _TRIES - 1:
                    raise
            else:
                return

    def names(self) -> list[str]:
        """Return all names, in order."""
        return self._place.names()

    def tags(self, name: str) -> dict[str, str]:
        """Return tag → digest of `name`, in order."""
        check_name(name)
        return {tag: found.digest for tag, found in self._place.tags(name).items()}

    def entries(self, name: str | None = None, *, fits: Any = None) -> list[Entry]:
        """Return the versions of `name`, or of all names, the newest first within a name.

        fits: a `Base`, or the configuration of a model; only prefixes of its shapes are returned.
        Damaged versions are left out; `verify` finds them.
        """
        from foreword.store.fitting import fits_base

        if name is not None:
            check_name(name)
        names = self.names() if name is None else [name]
        found = [entry for each in names for entry in self._entries(each)]
        return [entry for entry in found if fits is None or fits_base(entry.version.facts["base"], fits)]

    def _entries(self, name: str) -> list[Entry]:
        meant: dict[str, list[str]] = {}
        for tag, digest in self._readable_tags(name).items():
            meant.setdefault(digest, []).append(tag)
        found = []
        for digest in self._place.digests(name):
            try:
                found.append(Entry(self._place.version(name, digest), tuple(meant.get(digest, ()))))
            except (PrefixFormatError, UnknownPrefixError):  # damaged, or removed since it was listed
                continue
        return sorted(found, key=lambda entry: (entry.version.created, entry.version.digest), reverse=True)

    def _readable_tags(self, name: str) -> dict[str, str]:
        try:
            return self.tags(name)
        except PrefixFormatError:
            return {}

    def version(self, reference: str) -> Version:
        """Return what is known of the version that `reference` means."""
        wanted = parse(reference)
        return self._place.version(wanted.name, self._place.find(wanted))

    @contextmanager
    def open(self, reference: str) -> Iterator[Path]:
        """Yield the version's folder on this machine (`prefix/`, `README.md`, perhaps `head/`); it stays meanwhile."""
        with version_folder(reference, self._place) as folder:
            yield folder

    def load(self, reference: str) -> Prefix:
        """Return the prefix that `reference` means; every byte of it is checked."""
        from foreword.prefix import Prefix

        with self.open(reference) as folder:
            return Prefix.load(folder / PREFIX)

    def tag(self, reference: str, tag: str, *, expected: Expected = ANYTHING) -> str:
        """Let `tag` mean the version of `reference`, and return its digest. The tag's object is replaced as a whole.

        expected: the digest that the tag must mean until now, None for no such tag; else `TagConflictError`.
        """
        wanted = parse(reference)
        check_tag(tag)
        digest = self._place.find(wanted)
        if isinstance(expected, str):
            expected = self._place.find(Reference(wanted.name, digest=expected.removeprefix("sha256:")))
        self._place.set_tag(tag_now(wanted.name, tag, digest), expected)
        return digest

    def remove(self, reference: str) -> None:
        """Remove a tag (`team/task@tag`), or a version that no tag means (`team/task@digest`)."""
        wanted = parse(reference)
        if "@" not in reference:
            raise ConfigError("name", f"{reference}: name a tag ({reference}@TAG) or a version ({reference}@DIGEST)")
        if wanted.tag is not None:
            self._place.remove_tag(wanted.name, wanted.tag)
        else:
            self._place.remove_version(wanted.name, self._place.find(wanted))

    def verify(self, reference: str | None = None) -> tuple[int, list[Problem]]:
        """Read every byte of a name, a version, or the whole store. Return (versions read, what is wrong)."""
        from foreword.store.verifying import verified

        return verified(self._place, reference)

    def gc(self, *, older_than: timedelta = timedelta(days=KEEP_DAYS), dry_run: bool = False) -> list[tuple[str, str]]:
        """Remove versions that no tag means and nobody reads, if they were made `older_than` ago.

        Return (`team/task@digest`, what was done) of each. A remote place marks them first, and removes them in a
        collection an hour later, so that a reader on another machine can finish.
        """
        limit, done = datetime.now(UTC) - older_than, []
        for name in self.names():
            for digest, what in self._place.collect(name, lambda version: version.created > limit, dry_run):
                done.append((f"{name}@{digest[:12]}", what))
        return done

    def push(self, reference: str, to: str | Path | Place, **options: Any) -> Version:
        """Copy a version and the tag of `reference` to another store, or to a repository of the hub (`hf://org/name`)."""
        wanted = parse(reference)
        version = self.version(reference)
        tags = (wanted.tag,) if wanted.tag else ()
        with self.open(reference) as folder:
            if str(to).startswith("hf://"):
                from foreword.store.hub import push

                push(version, folder, str(to), tags)
            else:
                Store(to, **options)._publish(version, folder, tags)
        return version

    def pull(self, reference: str, source: str | Path, **options: Any) -> Version:
        """Copy a version from another store, or from the hub, into this one, and let its tag mean it here too."""
        wanted = parse(reference)
        if str(source).startswith("hf://"):
            from foreword.store.hub import pulled

            with pulled(str(source), wanted) as (version, folder):
                self._publish(version, folder, (wanted.tag,) if wanted.tag else ())
            return version
        return Store(source, **options).push(reference, self._place)
