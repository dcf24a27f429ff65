"""Segments: a segment is a run of consecutive queries that see a run of consecutive keys, as in a varlen kernel call.

Segments have two uses. Packed rows stand one after another in a single row; each is a segment. The rows of a batch are
sorted by prefix; the rows of one prefix are a segment, and the keys and values of each prefix are stored once.
A varlen kernel takes all segments in one call. The CPU kernel takes none, but neighbouring segments of equal shape are
a view of a batch. So each run of equal segments is one call without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, groupby

import torch
from torch import Tensor

from foreword.placing import placed


@dataclass(frozen=True)
class Segments:
    """queries, keys: how many queries and keys each segment has.

    runs: neighbouring segments of equal shape, as (number of segments, their queries, their keys); the slices index the
    whole query and key axes.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    runs: tuple[tuple[int, slice, slice], ...] = field(init=False, compare=False)
    _boundaries: dict[torch.device, tuple[Tensor, Tensor]] = field(init=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        runs, query, key = [], 0, 0
        for (queries, keys), equal in groupby(zip(self.queries, self.keys, strict=True)):
            count = len(list(equal))
            runs.append((count, slice(query, query + count * queries), slice(key, key + count * keys)))
            query, key = query + count * queries, key + count * keys
        object.__setattr__(self, "runs", tuple(runs))

    def varlen_arguments(self, device: torch.device) -> tuple[Tensor, Tensor, int, int]:
        """Return the cumulative lengths of queries and of keys, int32 `[segments + 1]`, and the longest of each."""
        if device not in self._boundaries:
            queries, keys = (placed([0, *accumulate(n)], device, torch.int32) for n in (self.queries, self.keys))
            self._boundaries[device] = queries, keys
        return *self._boundaries[device], max(self.queries), max(self.keys)


def as_batch(tensor: Tensor, count: int, places: slice) -> Tensor:
    """Return `count` equal segments, at `places` of `[1, H, N, …]`, as a batch: a view `[count, H, size, …]`."""
    flat = tensor[0, :, places]  # [H, count · size, …]
    return flat.view(flat.shape[0], count, flat.shape[1] // count, *flat.shape[2:]).transpose(0, 1)


def from_batch(tensor: Tensor) -> Tensor:
    """Invert `as_batch`: `[count, H, size, …]` → `[1, H, count · size, …]`; a view of `[count, size, H, …]` memory."""
    return tensor.transpose(1, 2).flatten(0, 1).unsqueeze(0).transpose(1, 2)


def concatenated(pieces: list[Tensor]) -> Tensor:
    """Concatenate `pieces` `[1, H, n_i, …]` along the third dimension, in memory order `[1, N, H, …]`."""
    return pieces[0] if len(pieces) == 1 else torch.cat([piece.transpose(1, 2) for piece in pieces], 1).transpose(1, 2)
