"""Tokenised rows that are kept in Foreword's cache, under a digest of all that they are made from.

That is the bytes of the source, the tokenizer, the task's settings, how the source is read, and the versions of
Foreword and of the libraries that tokenise. Only large files are kept: others are read again as fast as they are found.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword import status
from foreword._version import __version__
from foreword.data.compact import HEAD, VERSION, stored
from foreword.data.rows import BadRow
from foreword.errors import StorageError
from foreword.files import Unreadable, cache_folder, remove_folder
from foreword.folders import clear_inside

LARGE = 2**22  # bytes of a source that is worth it
MOST = 8 * 2**30  # bytes of all that is kept


@dataclass(frozen=True)
class Known:
    """What a task's items can be known again by. kind: their dataclass. identity: what they depend on beside source and
    reading, as JSON values."""

    kind: type[Any]
    identity: Mapping[str, Any]


def place_of(source: str, reading: Mapping[str, Any], known: Known | None) -> Path | None:
    """Return the folder in which the items of a source are kept, or would be; None if they are not to be kept.

    reading: how it is read, as JSON values.
    """
    path = Path(source).expanduser()
    try:
        if known is None or not path.is_file() or path.stat().st_size < LARGE:
            return None
        content = _digest(path)
    except (OSError, ValueError):
        return None
    made_from = {
        "version": VERSION, "foreword": __version__, "libraries": _versions(), "source": source, "content": content,
        "reading": dict(reading), "kind": known.kind.__name__,
        "identity": known.identity,
    }  # fmt: skip
    text = json.dumps(made_from, sort_keys=True, default=repr)
    return rows_folder() / hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def rows_folder() -> Path:
    return cache_folder() / "rows"


def kept_items(place: Path, known: Known) -> tuple[Sequence[Any], list[BadRow]] | None:
    """Return (items, bad rows) that are kept at `place`; None if there are none that are whole."""
    if not place.is_dir():
        return None
    try:
        items, head = stored(place, known.kind)
        return items, [BadRow(str(file), int(line), str(problem)) for file, line, problem in head["bad"]]
    except (Unreadable, OSError, LookupError, TypeError, ValueError):
        with suppress(StorageError):
            remove_folder(place)
        return None


def make_room(new: Path) -> None:
    """Remove what was used longest ago until all that is kept has `MOST` bytes; `new` stays. Never fails."""
    with suppress(OSError):
        clear_inside(rows_folder())
        kept = sorted(rows_folder().iterdir(), key=_used)
        sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in kept if folder.is_dir()}
        whole = sum(sizes.values())
        for folder, size in sizes.items():
            if whole > MOST and folder != new:
                with suppress(StorageError):
                    remove_folder(folder)
                    whole -= size


def _used(folder: Path) -> float:
    try:
        return (folder / HEAD).stat().st_mtime
    except OSError:
        return 0.0


def _digest(path: Path) -> str:
    hashed, done, size = hashlib.sha256(), 0, os.stat(path).st_size
    with path.open("rb") as file:
        while block := file.read(2**22):
            hashed.update(block)
            done += len(block)
            status.doing(f"hashing {path.name}, in MB", done // 10**6, size // 10**6)
    return hashed.hexdigest()


def _versions() -> dict[str, str]:
    import tokenizers
    import transformers

    return {"tokenizers": tokenizers.__version__, "transformers": transformers.__version__}
