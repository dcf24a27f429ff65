"""Asking the Hugging Face hub: what it answers in time, what it refuses, and a file of a commit, read with a limit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import huggingface_hub.utils
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from foreword.errors import ConfigError, PrefixFormatError, StorageError
from foreword.reaching import answers, way_to

_utils: Any = huggingface_hub.utils
SCHEME = "hf://"
TIMEOUT = 20.0  # seconds until an answer begins, or goes on
REFUSED = HfHubHTTPError
MISSING = (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError)
# HTTPError of httpx or httpx2, whichever the hub's client uses, and OSError; RuntimeError: an upload that failed;
# the others: an answer that is none of a hub
_FAILURES: tuple[Any, ...] = (*HfHubHTTPError.__bases__, ValueError, RuntimeError, KeyError, TypeError, AttributeError)


def repository(url: str) -> str:
    """Return org/name of a hub URL. Raises `ConfigError`."""
    name = url.removeprefix(SCHEME).removesuffix("/")
    try:
        _utils.validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError("to", f"{url} is no repository of the hub: {error}; write hf://org/name") from error
    if name.count("/") != 1:
        raise ConfigError("to", f"{url} must be hf://org/name; a store's tag becomes the branch")
    return name


@contextmanager
def asking(name: str) -> Iterator[HfApi]:
    """Yield the hub's client. Its errors become a `StorageError` that says what to do; it draws no bars."""
    api = HfApi(endpoint=(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/"))
    if constants.HF_HUB_OFFLINE:
        raise StorageError(f"{SCHEME}{name} can't be used: HF_HUB_OFFLINE is set; unset it to ask the hub")
    if not answers(way_to(api.endpoint)):
        raise StorageError(f"{SCHEME}{name} can't be used: {api.endpoint} can't be reached; look at the network")
    try:
        with _without_bars():
            yield api
    except _FAILURES as error:
        raise StorageError(
            f"{SCHEME}{name} can't be used: {_reason(error):.300}; look at the name, the token (HF_TOKEN) and the "
            "network, then try again"
        ) from error


def _reason(error: BaseException) -> str:
    """Return the text of an error; of an upload that failed, that of its cause."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return f"{error} {_reason(error.__cause__)}"
    return " ".join(str(error).split()) or type(error).__name__


def status_of(error: HfHubHTTPError) -> int:
    """Return the number of an HTTP answer, such as 409."""
    return int(error.response.status_code)


def info(api: HfApi, name: str, branch: str | None = None) -> Any:
    """Return what the hub says of a repository at a branch: `sha`, `siblings`. Raises one of `MISSING`."""
    found = api.model_info(name, revision=branch, timeout=TIMEOUT)
    if not found.sha or not constants.REGEX_COMMIT_OID.fullmatch(found.sha):
        raise ValueError(f"the hub names no commit of it, but {found.sha!r:.60}")
    return found


def fetched(api: HfApi, name: str, commit: str, path: str, most: int) -> bytes:
    """Return a file of a commit. Raises `PrefixFormatError` for one of more than `most` bytes, one of `MISSING`."""
    url = hf_hub_url(name, path, revision=commit, endpoint=api.endpoint)
    headers = _utils.build_hf_headers() | {"Accept-Encoding": "identity"}
    parts, size = [], 0
    with _utils.get_session().stream("GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=True) as response:
        _utils.hf_raise_for_status(response)
        announced = response.headers.get("Content-Length", "0")
        if announced.isdecimal() and int(announced) > most:
            raise _too_large(name, path, f"{int(announced):,}", most)
        for part in response.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > most:
                raise _too_large(name, path, f"at least {size:,}", most)
    return b"".join(parts)


def _too_large(name: str, path: str, size: str, most: int) -> PrefixFormatError:
    return PrefixFormatError(f"{SCHEME}{name}: {path} has {size} bytes, not at most {most:,}; it was changed")


@contextmanager
def _without_bars() -> Iterator[None]:
    """Within the block the hub's client draws no progress bars; Foreword says itself what goes on."""
    drawn = not _utils.are_progress_bars_disabled()
    _utils.disable_progress_bars()
    try:
        yield
    finally:
        if drawn:
            _utils.enable_progress_bars()
