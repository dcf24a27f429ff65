"""Attention over segments: consecutive queries that each see consecutive keys of their own (a varlen call).

Two things are segments: rows that lie packed one behind another, and the rows of a batch sorted by their prefix, where
each prefix's keys and values are held once. On CUDA they are one kernel call. The CPU kernel knows no segments, but
consecutive ones of equal shape are a batch in place, so each run of them is one call and nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
from torch import Tensor

from foreword.attention.backends import Cut, Flash, Part
from foreword.placing import placed


class Run(NamedTuple):
    """`number` consecutive segments of `queries` queries and `keys` keys each, from `first_query` and `first_key` on."""

    number: int
    queries: int
    keys: int
    first_query: int
    first_key: int


@dataclass(frozen=True)
class Segments:
    """queries, keys: how many each segment has. runs: the segments, equal neighbours together."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    runs: tuple[Run, ...] = field(init=False, compare=False)
    _boundaries: dict[torch.device, tuple[Tensor, Tensor]] = field(init=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        found, query, key = [], 0, 0
        for (queries, keys), same in groupby(zip(self.queries, self.keys, strict=True)):
            count = len(list(same))
            found.append(Run(count, queries, keys, query, key))
            query, key = query + count * queries, key + count * keys
        object.__setattr__(self, "runs", tuple(found))

    def boundaries(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cumulative lengths of queries and keys, int32 `[segments + 1]`, as varlen kernels want them."""
        if device not in self._boundaries:
            made = [placed([0, *accumulate(sizes)], device, torch.int32) for sizes in (self.queries, self.keys)]
            self._boundaries[device] = made[0], made[1]
        return self._boundaries[device]

    def cut(self, device: torch.device) -> Cut:
        """What a varlen kernel is told of them."""
        return *self.boundaries(device), max(self.queries), max(self.keys)


def forward(
    flash: Flash, query: Tensor, key: Tensor, value: Tensor, segments: Segments, causal: bool, scale: float
) -> Part:
    """Output `[1, H, N, d]` and log-sum-exp `[1, H, N]` for query `[1, H, N, d]`, key and value `[1, H_kv, M, d]`."""
    if flash.varlen is not None:
        return flash.varlen.forward(query, key, value, segments.cut(query.device), causal, scale)
    parts = [
        flash.forward(_queries(query, run), keys_of(key, run), keys_of(value, run), None, causal, scale)
        for run in segments.runs
    ]
    output = [_joined(part.output) for part in parts]
    lse = [_joined(part.lse) for part in parts]
    return Part(output[0], lse[0]) if len(parts) == 1 else Part(_cat(output), _cat(lse))


def backward(
    flash: Flash,
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    part: Part,
    segments: Segments,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, in their shapes. part: merged output and log-sum-exp."""
    if flash.varlen is not None:
        return flash.varlen.backward(grad, query, key, value, part, segments.cut(query.device), causal, scale)
    found = []
    for run in segments.runs:
        own = Part(_queries(part.output, run), _queries(part.lse, run))
        given = _queries(grad, run), _queries(query, run), keys_of(key, run), keys_of(value, run)
        found.append([_joined(piece) for piece in flash.backward(*given, own, None, causal, scale)])
    dq, dk, dv = ([pieces[index] for pieces in found] for index in range(3))
    return _cat(dq), _cat(dk), _cat(dv)


def _queries(tensor: Tensor, run: Run) -> Tensor:
    return _cut(tensor, run.number, run.queries, run.first_query)


def keys_of(tensor: Tensor, run: Run) -> Tensor:
    """The keys (or values) `[1, H_kv, M, d]` of a run's segments: a view `[number, H_kv, keys, d]`."""
    return _cut(tensor, run.number, run.keys, run.first_key)


def _cut(tensor: Tensor, count: int, size: int, first: int) -> Tensor:
    """`[1, H, N, …]` → a view `[count, H, size, …]` of `count · size` places from `first` on."""
    part = tensor[0, :, first : first + count * size]
    return part.view(part.shape[0], count, size, *part.shape[2:]).transpose(0, 1)


def _joined(tensor: Tensor) -> Tensor:
    """The inverse of `_cut`: `[count, H, size, …]` → `[1, H, count · size, …]`; a view of `[count, size, H, …]` memory."""
    return tensor.transpose(1, 2).flatten(0, 1).unsqueeze(0).transpose(1, 2)


def _cat(pieces: list[Tensor]) -> Tensor:
    """`pieces` `[1, H, n_i, …]` along their third dimension, in `[1, N, H, …]` memory."""
    return pieces[0] if len(pieces) == 1 else torch.cat([piece.transpose(1, 2) for piece in pieces], 1).transpose(1, 2)
