"""Which rows of a batch use which prefix, and the prefixes of one slot laid end to end.

`RowMap` says who uses what, `Plan` says it for one attention call, `Segments` (see `segments`) is what kernels are told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from foreword.attention.segments import Segments
from foreword.errors import BatchMismatchError
from foreword.placing import placed


class Plan(NamedTuple):
    """For one attention call: order: which queries, of the rows' tokens laid end to end, each prefix serves, prefix by
    prefix; None: all of them as they stand. segments: how many queries and virtual tokens each prefix has."""

    order: Tensor | None
    segments: Segments


class Shared(NamedTuple):
    """The prefixes of one slot, end to end: key `[H_kv, M, d_k]`, value `[H_kv, M, d_v]`, and who sees which."""

    plan: Plan
    key: Tensor
    value: Tensor


class RowMap:
    """Assigns prefixes to batch rows.

    `assignment[i]` is the number of a prefix, or None for the plain base. One entry serves every row. With R entries
    and k·R rows (beam search, several returned sequences) row r uses entry r // k. lengths: virtual tokens of each
    prefix; prefixes of equal length and equally many rows stand side by side.
    """

    def __init__(self, assignment: list[int | None], lengths: Sequence[int] = ()) -> None:
        self.assignment, self.lengths = assignment, lengths
        self._groups: dict[int, dict[int, tuple[int, ...] | None]] = {}
        self._indices: dict[tuple[int, int, torch.device], Tensor | None] = {}
        self._orders: dict[tuple[tuple[int, ...], int, int, torch.device], Tensor | None] = {}
        self._plans: dict[tuple[tuple[int, ...], tuple[int, ...], int, int, torch.device], Plan] = {}

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

    def groups(self, batch: int) -> dict[int, tuple[int, ...] | None]:
        """Prefix → its rows in a batch of `batch` rows; None: every row. Rows without a prefix are in no group."""
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
        """The rows of `prefix` as an index tensor; None: every row."""
        key = prefix, batch, device
        if key not in self._indices:
            rows = self.groups(batch)[prefix]
            self._indices[key] = None if rows is None else placed(rows, device)
        return self._indices[key]

    def plan(
        self, prefixes: tuple[int, ...], lengths: tuple[int, ...], batch: int, tokens: int, device: torch.device
    ) -> Plan:
        """For `batch` rows of `tokens` queries each, of which `prefixes`, in the order of `groups`, have a slot.

        lengths: the prefixes' virtual tokens in that slot. Slots with the same ones share a plan.
        """
        key = prefixes, lengths, batch, tokens, device
        if key not in self._plans:
            groups = self.groups(batch)
            rows = [groups[prefix] for prefix in prefixes]
            counts = (batch if places is None else len(places) for places in rows)
            segments = Segments(tuple(count * tokens for count in counts), lengths)
            self._plans[key] = Plan(self._order(prefixes, batch, tokens, device), segments)
        return self._plans[key]

    def _order(self, prefixes: tuple[int, ...], batch: int, tokens: int, device: torch.device) -> Tensor | None:
        key = prefixes, batch, tokens, device
        if key not in self._orders:
            groups = self.groups(batch)
            rows = [row for prefix in prefixes for row in groups[prefix] or range(batch)]
            with torch.inference_mode(False):  # it may serve gradients later
                in_place = rows == list(range(batch))
                self._orders[key] = None if in_place else _of_tokens(placed(rows, device), tokens)
        return self._orders[key]


def laid_out(keys: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Keys and values `[H_kv, m_i, d]` end to end: one prefix where it lies, several as a copy."""
    return (keys[0], values[0]) if len(keys) == 1 else (torch.cat(list(keys), 1), torch.cat(list(values), 1))


def take(tensor: Tensor, order: Tensor | None) -> Tensor:
    """The places `order` of `[1, H, N, …]`, in `[1, N, H, …]` memory."""
    return tensor if order is None else tensor.transpose(1, 2).index_select(1, order).transpose(1, 2)


def put(tensor: Tensor, order: Tensor | None, values: Tensor) -> Tensor:
    """`tensor` `[1, H, N, …]` with `values` at the places `order`."""
    if order is None:
        return values
    return tensor.transpose(1, 2).index_copy(1, order, values.transpose(1, 2)).transpose(1, 2)


def _of_tokens(rows: Tensor, tokens: int) -> Tensor:
    """The places of the tokens of `rows`, where each row has `tokens` of them."""
    if tokens == 1:
        return rows
    return (rows.unsqueeze(1) * tokens + torch.arange(tokens, device=rows.device)).flatten()
