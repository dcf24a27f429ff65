"""What readers yield, and how much of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_LINE = 10_000_000  # bytes of a row
MAX_COLUMNS = 10_000


@dataclass(frozen=True)
class Row:
    """The fields of one row and where it stands. line: 1-based; for Parquet and Datasets the row number."""

    fields: dict[str, Any]
    file: str
    line: int

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class BadRow:
    """A row that can't be used, and why."""

    file: str
    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.problem}"


def twice(names: Sequence[str]) -> str | None:
    """Return a name that occurs more than once, or None."""
    if len(set(names)) == len(names):
        return None
    return Counter(names).most_common(1)[0][0]
