"""Segments: consecutive queries that each see consecutive keys of their own, as in a varlen kernel call.

Two things are segments: rows that lie packed one behind another, and the rows of a batch sorted by their prefix, where
each prefix's keys and values are held once. A varlen kernel takes all of them in one call. The CPU kernel knows no
segments, but consecutive ones of equal shape are a batch in place, so each run of them is one call without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, groupby

import torch
from torch import Tensor

from foreword.placing import placed


@dataclass(frozen=True)
class Segments:
    """queries, keys: how many of them each segment has.

    runs: neighbours of equal shape, as (how many segments, their queries, their keys); the slices are of the whole
    query and key axes.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    runs: tuple[tuple[int, slice, slice], ...] = field(init=False, compare=False)
    _boundaries: dict[torch.device, tuple[Tensor, Tensor]] = field(init=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        runs, query, key = [], 0, 0
        for (queries, keys), same in groupby(zip(self.queries, self.keys, strict=True)):
            count = len(list(same))
            runs.append((count, slice(query, query + count * queries), slice(key, key + count * keys)))
            query, key = query + count * queries, key + count * keys
        object.__setattr__(self, "runs", tuple(runs))

    def varlen_arguments(self, device: torch.device) -> tuple[Tensor, Tensor, int, int]:
        """Cumulative lengths of queries and of keys, int32 `[segments + 1]`, and the longest of each."""
        if device not in self._boundaries:
            queries, keys = (placed([0, *accumulate(n)], device, torch.int32) for n in (self.queries, self.keys))
            self._boundaries[device] = queries, keys
        return *self._boundaries[device], max(self.queries), max(self.keys)


def as_batch(tensor: Tensor, count: int, places: slice) -> Tensor:
    """`count` segments of equal size, at `places` of `[1, H, N, …]`, as a batch: a view `[count, H, size, …]`."""
    part = tensor[0, :, places]
    return part.view(part.shape[0], count, part.shape[1] // count, *part.shape[2:]).transpose(0, 1)


def from_batch(tensor: Tensor) -> Tensor:
    """The inverse: `[count, H, size, …]` → `[1, H, count · size, …]`; a view of `[count, size, H, …]` memory."""
    return tensor.transpose(1, 2).flatten(0, 1).unsqueeze(0).transpose(1, 2)


def concatenated(pieces: list[Tensor]) -> Tensor:
    """`pieces` `[1, H, n_i, …]` along their third dimension, in `[1, N, H, …]` memory."""
    return pieces[0] if len(pieces) == 1 else torch.cat([piece.transpose(1, 2) for piece in pieces], 1).transpose(1, 2)
