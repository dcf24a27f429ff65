"""The Hugging Face hub: a repository per prefix, its branches for tags.

A version's files lie at the root of the repository as they lie in a store. The branch `main` is the version that was
pushed last, and so is `latest`; each other tag of the store is a branch, because the hub moves a branch in one step,
but a tag of git only by removing it first. Each commit is one whole version, and takes the place of the commit that it
was made for, so that of two pushes at once one is done after the other.
A new repository is private. `HF_ENDPOINT` and `HF_TOKEN` say where the hub is and who is asking.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import RevisionNotFoundError

from foreword import status
from foreword.errors import ConfigError, PrefixFormatError, StorageError, UnknownPrefixError
from foreword.store.hub_client import MISSING, REFUSED, SCHEME, asking, fetched, info, repository, status_of
from foreword.versions import version as versions
from foreword.versions.checking import problems_of
from foreword.versions.names import LATEST, Reference
from foreword.versions.version import ALLOWED, CARD, FILE, MOST, Version

MAIN = "main"
_IGNORES, _SURE = ".gitignore", {".gitattributes", CARD}  # what a repository may hold that has no version yet
_SHORT = 12  # digits of a digest in a commit's title
_TRIES = 8
_ELSEWHERE = (409, 412)  # a branch exists already; it is not at the commit that was expected


def push(version: Version, folder: Path, to: str, tags: Sequence[str]) -> None:
    """Write a version to the repository `to` (hf://org/name) in one commit to `main`, and let the tags mean it there.

    A repository that isn't there yet is made, private. Where the push fails, or is killed, `main` and each tag mean a
    whole version: the new one or that of before.
    Raises `ConfigError` for a name that the hub can't have and for a repository that holds something else,
    `StorageError` if the hub refuses or can't be reached.
    """
    name = repository(to)
    for tag in tags:
        _branch(tag)
    with asking(name) as api:
        _make(api, name)
        status.doing(f"sending {version.name} to {name}")
        commit = _committed(api, name, MAIN, version, folder)
        for tag in tags:
            if tag != LATEST and not _branched(api, name, tag, commit):
                _committed(api, name, tag, version, folder)


def _make(api: Any, name: str) -> None:
    """Make the repository unless it is there; a token that may only write to it is enough then."""
    try:
        info(api, name)
    except MISSING:
        api.create_repo(name, exist_ok=True, private=True)


def _committed(api: Any, name: str, branch: str, version: Version, folder: Path) -> str:
    """Let a branch be the version, and return its commit. Where another push came between, it is made anew."""
    for _ in range(_TRIES):
        now = info(api, name, branch)
        there = {file.rfilename for file in now.siblings or ()}
        _require_room(api, name, now.sha, there, version)
        title = f"{version.name}@{version.digest[:_SHORT]}"
        try:
            commit: str = api.create_commit(
                name,
                _changes(version, folder, there),  # new ones each time: they remember what the hub said
                commit_message=title,
                revision=branch,
                parent_commit=now.sha,
            ).oid
        except REFUSED as error:
            if status_of(error) not in _ELSEWHERE:
                raise
            continue
        if commit == now.sha or _held(api, name, commit) == version:  # else all was there, but is no more
            return commit
    raise StorageError(f"{SCHEME}{name} is being pushed to by others, {_TRIES} times in between; try again")


def _changes(version: Version, folder: Path, there: set[str]) -> list[Any]:
    added = [CommitOperationAdd(path, str(folder / path)) for path in (FILE, *version.files)]
    return added + [CommitOperationDelete(path) for path in ALLOWED if path in there and path not in version.files]


def _branched(api: Any, name: str, branch: str, commit: str) -> bool:
    """Make a branch. Return False if it is there already."""
    try:
        api.create_branch(name, branch=branch, revision=commit)
    except REFUSED as error:
        if status_of(error) not in _ELSEWHERE:
            raise
        return False
    return True


def _require_room(api: Any, name: str, commit: str, there: set[str], version: Version) -> None:
    """Raise `ConfigError` if a repository holds another prefix, or something else than a prefix."""
    where = f"{SCHEME}{name}"
    if _IGNORES in there:
        raise ConfigError("to", f"{where} has a {_IGNORES}, which could keep files out of a version; remove it there")
    if FILE not in there:
        if others := sorted(there - _SURE):
            raise ConfigError("to", f"{where} has {others[0]} and is no prefix; push to a repository of its own")
        return
    try:
        held = _held(api, name, commit)
    except PrefixFormatError:  # damaged; a push mends it
        return
    if held.name != version.name:
        raise ConfigError("to", f"{where} holds {held.name}; push {version.name} to a repository of its own")


def _held(api: Any, name: str, commit: str) -> Version:
    """Return the version of a commit. Raises `PrefixFormatError`."""
    return versions.parsed(fetched(api, name, commit, FILE, MOST), f"{SCHEME}{name}: {FILE}")


@contextmanager
def pulled(source: str, wanted: Reference) -> Iterator[tuple[Version, Path]]:
    """Yield (version, folder of its files), all of one commit, every byte checked. source: hf://org/name.

    wanted: its tag is the branch (`latest` is `main`); a digest is that of any version that was pushed.
    Raises `UnknownPrefixError` if the hub has none, `PrefixFormatError` for damaged files or another name,
    `StorageError` if the hub can't be reached.
    """
    name = repository(source)
    with TemporaryDirectory(prefix="foreword-") as temporary:
        folder = Path(temporary) / "version"
        with asking(name) as api:
            version = _downloaded(api, name, wanted, folder)
        if problems := problems_of(folder, version.digest):
            raise PrefixFormatError(f"{source}: {problems[0]}")
        yield version, folder


def _downloaded(api: Any, name: str, wanted: Reference, folder: Path) -> Version:
    where = f"{SCHEME}{name}"
    commit = _commit_of(api, name, wanted)
    try:
        first = fetched(api, name, commit, FILE, MOST)
    except MISSING as error:
        raise UnknownPrefixError(f"{where} has no {FILE}, so it is no prefix of Foreword") from error
    version = versions.parsed(first, f"{where}: {FILE}")
    _require(version, wanted, where)
    for path, known in {FILE: versions.Stored(len(first), ""), **version.files}.items():
        status.doing(f"fetching {name}: {path}")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        try:
            data = first if path == FILE else fetched(api, name, commit, path, known.size)
        except MISSING as error:
            raise PrefixFormatError(f"{where} is incomplete: it has no {path}; push it again") from error
        (folder / path).write_bytes(data)
    return version


def _commit_of(api: Any, name: str, wanted: Reference) -> str:
    """Return the commit of a tag, or that of a digest by the commits' titles; the newest if no title has it."""
    branch = MAIN if wanted.tag is None else _branch(wanted.tag)
    try:
        newest: str = info(api, name, branch).sha
    except MISSING as error:
        raise UnknownPrefixError(_nothing(name, branch, error)) from error
    if wanted.digest is None:
        return newest
    found: dict[str, str] = {}
    for commit in api.list_repo_commits(name):
        digest = commit.title.partition("@")[2]
        if len(digest) == _SHORT and digest.startswith(wanted.digest[:_SHORT]):
            found.setdefault(digest, commit.commit_id)
    if len(found) > 1:
        raise ConfigError("digest", f"{wanted} could be {len(found)} versions; give more of its digits")
    return next(iter(found.values()), newest)


def _nothing(name: str, branch: str, error: Exception) -> str:
    if isinstance(error, RevisionNotFoundError):
        return f"{SCHEME}{name} has no tag {branch}; leave the tag out to get the newest version"
    return f"there is no {SCHEME}{name}, or it is private and the token (HF_TOKEN) may not read it"


def _require(version: Version, wanted: Reference, where: str) -> None:
    if version.name != wanted.name:
        raise PrefixFormatError(f"{where} holds {version.name}, not {wanted.name}; pull it by its own name")
    if wanted.digest is not None and not version.digest.startswith(wanted.digest):
        raise UnknownPrefixError(f"{where} has no version {wanted.digest}; the newest is {version.digest[:_SHORT]}")


def _branch(tag: str) -> str:
    """Return the branch of a tag. Raises `ConfigError` for `main`, which has its own meaning there."""
    if tag == MAIN:
        raise ConfigError("tag", f"{MAIN} is the hub's name for the newest version; use another tag, or {LATEST}")
    return MAIN if tag == LATEST else tag
