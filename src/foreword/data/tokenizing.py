"""Around tokenising many rows: the tokenizers' own threads, and how many rows there will be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SWITCH = "TOKENIZERS_PARALLELISM"
OFF = "off"  # as Foreword writes it, so that a switch of the user's own is known and left alone


@contextmanager
def threads_of_tokenizers() -> Iterator[None]:
    """Within the block fast tokenizers use all cores, unless the environment variable says otherwise.

    Afterwards they use one: with threads they warn at every fork.
    """
    if os.environ.get(SWITCH, OFF) != OFF:
        yield
        return
    os.environ[SWITCH] = "true"
    try:
        yield
    finally:
        os.environ[SWITCH] = OFF


def row_count(source: str, limit: int | None) -> int | None:
    """Return how many rows a JSONL file has at most, by its lines; None where that isn't known beforehand."""
    path = Path(source)
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        return limit
    try:
        if not path.is_file():
            return limit
        with path.open("rb") as file:
            lines, last = 0, b"\n"
            while block := file.read(2**20):
                lines, last = lines + block.count(b"\n"), block[-1:]
    except (OSError, ValueError):
        return limit
    lines += last != b"\n"
    return lines if limit is None else min(lines, limit)
