"""The Hugging Face hub: a repository per prefix, its revisions for tags.

A version's files lie at the root of the repository as they lie in a store. `main` is the version that was pushed last;
a tag of the store is a tag of the repository. `HF_ENDPOINT` and `HF_TOKEN` say where the hub is and who is asking.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from foreword import status
from foreword.errors import ConfigError, PrefixFormatError, StorageError, UnknownPrefixError
from foreword.files import read_bytes
from foreword.versions import version as versions
from foreword.versions.checking import problems_of
from foreword.versions.names import LATEST, Reference
from foreword.versions.version import ALLOWED, FILE, MOST, Version

SCHEME = "hf://"


def push(version: Version, folder: Path, to: str, tags: Sequence[str]) -> None:
    """Write a version to the repository `to` (hf://org/name) in one commit, and move its tags there.

    Raises `ConfigError` for a name that the hub can't have, `StorageError` if the hub refuses or can't be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    name, api = _repository(to), _api()
    with _asking(name):
        api.create_repo(name, exist_ok=True, private=True)
        there = set(api.list_repo_files(name))
        changes: list[Any] = [
            CommitOperationAdd(path, str(folder / path)) for path in (FILE, *version.files) if (folder / path).is_file()
        ]
        changes += [CommitOperationDelete(path) for path in ALLOWED if path in there and path not in version.files]
        status.doing(f"sending {version.name} to {name}")
        commit = api.create_commit(name, changes, commit_message=f"{version.name}@{version.digest[:12]}")
        for tag in tags:
            if tag != LATEST:
                _move_tag(api, name, tag, commit.oid)


def _move_tag(api: Any, name: str, tag: str, revision: str) -> None:
    """Let a tag mean a revision; the hub has no move, so a former one is removed first."""
    if tag in {ref.name for ref in api.list_repo_refs(name).tags}:
        api.delete_tag(name, tag=tag)
    api.create_tag(name, tag=tag, revision=revision)


@contextmanager
def pulled(source: str, wanted: Reference) -> Iterator[tuple[Version, Path]]:
    """Yield (version, folder of its files), every byte checked. source: hf://org/name.

    wanted: its tag is the revision (`latest` is `main`); with a digest the newest version must be that one.
    Raises `UnknownPrefixError` if the hub has none, `PrefixFormatError` for damaged files or another name,
    `StorageError` if the hub can't be reached.
    """
    name, api = _repository(source), _api()
    revision = None if wanted.tag in (None, LATEST) else wanted.tag
    with TemporaryDirectory(prefix="foreword-") as temporary:
        folder = Path(temporary) / "version"
        folder.mkdir()
        first = _fetched(api, name, revision, FILE, folder, MOST)
        version = versions.parsed(first, f"{source}: {FILE}")
        _require(version, wanted, source)
        for path, known in version.files.items():
            status.doing(f"fetching {name}: {path}")
            _fetched(api, name, revision, path, folder, known.size)
        if problems := problems_of(folder, version.digest):
            raise PrefixFormatError(f"{source}: {problems[0]}")
        yield version, folder


def _require(version: Version, wanted: Reference, source: str) -> None:
    if version.name != wanted.name:
        raise PrefixFormatError(f"{source} holds {version.name}, not {wanted.name}; pull it by its own name")
    if wanted.digest is not None and not version.digest.startswith(wanted.digest):
        raise UnknownPrefixError(f"{source} holds version {version.digest[:12]}, not {wanted.digest}; name its tag")


def _fetched(api: Any, name: str, revision: str | None, path: str, folder: Path, most: int) -> bytes:
    """Download one file into `folder` and return its bytes."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    with _asking(name):
        try:
            found = api.get_paths_info(name, [path], revision=revision)
            if found and found[0].size > most:
                raise PrefixFormatError(f"{SCHEME}{name}: {path} has {found[0].size:,} bytes, not at most {most:,}")
            file = Path(api.hf_hub_download(name, path, revision=revision, cache_dir=folder.parent / "cache"))
        except LocalEntryNotFoundError:  # of the other kind, but means that the hub can't be reached
            raise
        except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
            at = "" if revision is None else f" at {revision}"
            raise UnknownPrefixError(f"{SCHEME}{name}{at} has no {path}, so it is no prefix of Foreword") from error
    data = read_bytes(file, most)
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_bytes(data)
    return data


def _repository(url: str) -> str:
    """Return org/name of a hub URL. Raises `ConfigError`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    name = url.removeprefix(SCHEME).strip("/")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError("to", f"{url} is no repository of the hub: {error}; write hf://org/name") from error
    if name.count("/") != 1:
        raise ConfigError("to", f"{url} must be hf://org/name; a store's tag becomes the revision")
    return name


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi()


@contextmanager
def _asking(name: str) -> Iterator[None]:
    """Turn the hub's errors into a `StorageError` that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise StorageError(
            f"{SCHEME}{name} can't be used: {reason:.300}; look at the name, the token (HF_TOKEN) and the network"
        ) from error
