"""Which rows of a batch use which prefix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.errors import BatchMismatchError


@dataclass(frozen=True)
class Group:
    """Rows of one batch that share a prefix. `rows` is an index tensor; None means every row."""

    prefix: int
    rows: Tensor | None


class RowMap:
    """Assigns prefixes to batch rows.

    `assignment[i]` is an index into the distinct prefixes, or None for the plain base. One entry
    serves every row. With R entries and k·R rows (beam search, several returned sequences) row r
    uses entry r // k.
    """

    def __init__(self, assignment: list[int | None]) -> None:
        self.assignment = assignment
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
        return tuple(Group(entry, torch.tensor(index, device=device)) for entry, index in rows.items())
