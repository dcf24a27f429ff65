"""Which rows of a batch use which prefix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.errors import BatchMismatchError
from foreword.placing import placed
from foreword.prefix import Prefix


@dataclass(frozen=True)
class Group:
    """Rows of one batch that share a prefix. rows: an index tensor; None means every row; places: the same on the host."""

    prefix: int
    rows: Tensor | None
    places: tuple[int, ...] | None = None


class RowMap:
    """Assigns prefixes to batch rows.

    `assignment[i]` is an index into the distinct prefixes, or None for the plain base. One entry
    serves every row. With R entries and k·R rows (beam search, several returned sequences) row r
    uses entry r // k. lengths: virtual tokens of each prefix; groups of equal length and size stand side by side.
    """

    def __init__(self, assignment: list[int | None], lengths: Sequence[int] = ()) -> None:
        self.assignment, self.lengths = assignment, lengths
        self._groups: dict[tuple[int, torch.device], tuple[Group, ...]] = {}

    def expand(self, batch: int) -> list[int | None]:
        """The assignment of each of `batch` rows. Raises `BatchMismatchError` if it doesn't go."""
        entries = len(self.assignment)
        if entries == 1:
            return self.assignment * batch
        if batch % entries:
            raise BatchMismatchError(
                f"{entries} prefixes are attached, one per row, but the batch has {batch} rows; "
                "attach as many as there are rows, or a single one for all"
            )
        repeats = batch // entries
        return [entry for entry in self.assignment for _ in range(repeats)]

    def groups(self, batch: int, device: torch.device) -> tuple[Group, ...]:
        """The rows of each prefix in a batch of `batch` rows on `device`; rows without one appear in no group."""
        if (batch, device) not in self._groups:
            self._groups[batch, device] = self._build(self.expand(batch), device)
        return self._groups[batch, device]

    def _build(self, entries: list[int | None], device: torch.device) -> tuple[Group, ...]:
        rows: dict[int, list[int]] = {}
        for row, entry in enumerate(entries):
            if entry is not None:
                rows.setdefault(entry, []).append(row)
        if len(rows) == 1 and None not in entries:
            return (Group(next(iter(rows)), None),)
        lengths = self.lengths or [0] * (max(rows, default=0) + 1)
        order = sorted(rows, key=lambda entry: (lengths[entry], len(rows[entry])))
        return tuple(Group(entry, placed(rows[entry], device), tuple(rows[entry])) for entry in order)


def side_by_side(rows: Sequence[Prefix | None]) -> list[int]:
    """An order of `rows` in which those of one prefix are neighbours and stand as `RowMap` groups them, so that attention
    needs no index; rows without one come last."""
    counts = Counter(id(row) for row in rows)
    first: dict[int, int] = {}
    for index, row in enumerate(rows):
        first.setdefault(id(row), index)

    def place(index: int) -> tuple[bool, int, int, int]:
        row = rows[index]
        return row is None, 0 if row is None else row.length, counts[id(row)], first[id(row)]

    return sorted(range(len(rows)), key=place)
