"""Where a prefix lies: in its own folder, in that of its run, or in the store; and what it is called by."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from foreword.errors import UnknownPrefixError
from foreword.prefix.stored import MANIFEST
from foreword.versions.finding import means_store, version_folder
from foreword.versions.names import SCHEME


@contextmanager
def located(path: str | Path) -> Iterator[str]:
    """Yield the folder of a prefix.

    path: a saved prefix's folder, its run's, or a reference to the store: `team/task`, `team/task@tag` or
    `team/task@digest`. A folder that there is goes before a reference; `store:team/task` means the store always.
    A version of the store stays there while the block lasts.
    Raises `UnknownPrefixError` for a reference that the store doesn't have.
    """
    if not means_store(path):
        yield prefix_folder(path)
        return
    with ExitStack() as held:
        try:
            folder = held.enter_context(version_folder(str(path)))
        except UnknownPrefixError as error:
            here = "" if str(path).startswith(SCHEME) else f"there is no folder {path}, and "
            raise UnknownPrefixError(f"{here}{error}") from error
        yield prefix_folder(folder)


def prefix_folder(path: str | Path) -> str:
    """Return the folder of a prefix: `path`, or the prefix within it if it is a run's folder or a version's."""
    inner = os.path.join(path, "prefix")
    within = not os.path.exists(os.path.join(path, MANIFEST)) and os.path.exists(os.path.join(inner, MANIFEST))
    return inner if within else str(path)


def short_name(path: str) -> str:
    """Return a prefix's short name: its reference, or the name of its folder, or of its run's."""
    if means_store(path):
        return path.removeprefix(SCHEME)
    folder = Path(prefix_folder(path)).absolute()
    return folder.parent.name if folder.name == "prefix" else folder.name
