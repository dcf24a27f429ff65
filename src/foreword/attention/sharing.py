"""Which rows of a batch use which prefix, and the prefixes of one slot concatenated.

`RowMap` says which row uses which prefix. `Plan` says the same for one attention call. Kernels get `Segments`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from foreword.attention.segments import Segments
from foreword.errors import BatchMismatchError
from foreword.placing import placed

Bias = tuple[Tensor, ...] | None


class Plan(NamedTuple):
    """Which queries of one attention call see which prefix.

    order: the queries that see a prefix, prefix by prefix, as indices into the tokens of all rows one after another;
    None: all queries in their present order. segments: queries and virtual tokens of each prefix.
    """

    order: Tensor | None
    segments: Segments


class Shared(NamedTuple):
    """The concatenated prefixes of one slot, key `[H_kv, M, d_k]` and value `[H_kv, M, d_v]`, and their plan.

    bias: added to the scores of the prefixes, for each run of the plan's segments `[segments of the run, H, queries,
    virtual tokens]`; None: nothing is added.
    """

    plan: Plan
    key: Tensor
    value: Tensor
    bias: Bias = None


class RowMap:
    """Assigns prefixes to batch rows.

    `assignment[i]` is the number of a prefix, or None for the plain base. A single entry is used for every row. With
    R entries and k·R rows (beam search, several returned sequences) row r uses entry r // k.
    lengths: virtual tokens of each prefix. Prefixes of equal length and equally many rows become neighbours.
    """

    def __init__(self, assignment: list[int | None], lengths: Sequence[int] = ()) -> None:
        self.assignment, self.lengths = assignment, lengths
        self._groups: dict[int, dict[int, tuple[int, ...] | None]] = {}
        self._indices: dict[tuple[int, int, torch.device], Tensor | None] = {}
        self._orders: dict[tuple[tuple[int, ...], int, int, torch.device], Tensor | None] = {}
        self._plans: dict[tuple[tuple[int, ...], tuple[int, ...], int, int, torch.device], Plan] = {}

    def expand(self, batch: int) -> list[int | None]:
        """Return the assignment of each of `batch` rows.

        Raises `BatchMismatchError` unless `batch` is a multiple of the number of entries.
        """
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

    def groups(self, batch: int) -> dict[int, tuple[int, ...] | None]:
        """Return prefix → its rows in a batch of `batch` rows; None: every row. Rows without a prefix are left out."""
        if batch not in self._groups:
            self._groups[batch] = self._grouped(self.expand(batch))
        return self._groups[batch]

    def _grouped(self, entries: list[int | None]) -> dict[int, tuple[int, ...] | None]:
        rows: dict[int, list[int]] = {}
        for row, entry in enumerate(entries):
            if entry is not None:
                rows.setdefault(entry, []).append(row)
        if len(rows) == 1 and None not in entries:
            return dict.fromkeys(rows)
        lengths = self.lengths or [0] * (max(rows, default=0) + 1)
        order = sorted(rows, key=lambda entry: (lengths[entry], len(rows[entry])))
        return {entry: tuple(rows[entry]) for entry in order}

    def index(self, prefix: int, batch: int, device: torch.device) -> Tensor | None:
        """Return the rows of `prefix` as an index tensor; None: every row."""
        key = prefix, batch, device
        if key not in self._indices:
            rows = self.groups(batch)[prefix]
            self._indices[key] = None if rows is None else placed(rows, device)
        return self._indices[key]

    def plan(
        self, prefixes: tuple[int, ...], lengths: tuple[int, ...], batch: int, tokens: int, device: torch.device
    ) -> Plan:
        """Return the plan of one slot for `batch` rows of `tokens` queries each.

        prefixes: those that have the slot, in the order of `groups`. lengths: their virtual tokens in the slot.
        Slots with the same prefixes and lengths share a plan.
        """
        key = prefixes, lengths, batch, tokens, device
        if key not in self._plans:
            groups = self.groups(batch)
            rows_of_each = (groups[prefix] for prefix in prefixes)
            counts = (batch if rows is None else len(rows) for rows in rows_of_each)
            segments = Segments(tuple(count * tokens for count in counts), lengths)
            self._plans[key] = Plan(self._order(prefixes, batch, tokens, device), segments)
        return self._plans[key]

    def _order(self, prefixes: tuple[int, ...], batch: int, tokens: int, device: torch.device) -> Tensor | None:
        key = prefixes, batch, tokens, device
        if key not in self._orders:
            groups = self.groups(batch)
            rows = [row for prefix in prefixes for row in groups[prefix] or range(batch)]
            with torch.inference_mode(False):  # a later call may need gradients
                in_place = rows == list(range(batch))
                self._orders[key] = None if in_place else _of_tokens(placed(rows, device), tokens)
        return self._orders[key]


def laid_out(keys: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Concatenate keys and values `[H_kv, m_i, d]`. A single prefix is returned without a copy."""
    return (keys[0], values[0]) if len(keys) == 1 else (torch.cat(list(keys), 1), torch.cat(list(values), 1))


def take(tensor: Tensor, order: Tensor | None) -> Tensor:
    """Return the places `order` of `[1, H, N, …]`, in memory order `[1, N, H, …]`; None: all places."""
    return tensor if order is None else tensor.transpose(1, 2).index_select(1, order).transpose(1, 2)


def put(tensor: Tensor, order: Tensor | None, values: Tensor) -> Tensor:
    """Return `tensor` `[1, H, N, …]` with `values` at the places `order`; None: `values` replace all of it."""
    if order is None:
        return values
    return tensor.transpose(1, 2).index_copy(1, order, values.transpose(1, 2)).transpose(1, 2)


def _of_tokens(rows: Tensor, tokens: int) -> Tensor:
    """Return the places of the tokens of `rows`. Each row has `tokens` tokens."""
    if tokens == 1:
        return rows
    return (rows.unsqueeze(1) * tokens + torch.arange(tokens, device=rows.device)).flatten()
