"""The order in which a seed visits the rows: a pure function of seed and position, so a run can resume anywhere.

Each epoch is a new permutation. Where batches are padded, rows of similar length go into one: the permutation is cut
into windows of several batches; a window is sorted by length and cut into batches, and the batches are shuffled. This
spares most of the padding. Without padding there is nothing to spare, and batches are as random as can be, from which
training gains (docs/performance.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

WINDOW = 16  # batches
HELD_OUT = 96  # rows


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    """Batches of one epoch; one may be smaller, no row is left out."""
    return math.ceil(num_rows / batch_size)


def batches(
    lengths: Sequence[int], batch_size: int, seed: int, start: int = 0, window: int = WINDOW
) -> Iterator[list[int]]:
    """Row indices of batch `start`, `start + 1`, … without end. lengths: tokens of each row. window: batches among which
    rows are sorted by length; 1 leaves them as they come."""
    per_epoch = steps_per_epoch(len(lengths), batch_size)
    epoch, first = divmod(start, per_epoch)
    while True:
        yield from _epoch(lengths, batch_size, seed, epoch, window)[first:]
        epoch, first = epoch + 1, 0


def permutation(num_rows: int, seed: int, epoch: int) -> list[int]:
    """A seeded random order of `num_rows` rows."""
    order: list[int] = torch.randperm(num_rows, generator=_generator(seed, epoch)).tolist()
    return order


def held_out(num_rows: int, most: int, seed: int) -> list[int]:
    """The rows, in order, that a run without a validation file holds out: at most `most`, and a tenth."""
    return sorted(permutation(num_rows, seed, -1 % 2**31)[: min(most, num_rows // 10)])


def _epoch(lengths: Sequence[int], batch_size: int, seed: int, epoch: int, window: int) -> list[list[int]]:
    order = permutation(len(lengths), seed, epoch)
    cut: list[list[int]] = []
    for start in range(0, len(order), window * batch_size):
        near = sorted(order[start : start + window * batch_size], key=lambda row: lengths[row])
        cut += [near[index : index + batch_size] for index in range(0, len(near), batch_size)]
    shuffle = torch.randperm(len(cut), generator=_generator(seed, epoch)).tolist()
    return [cut[index] for index in shuffle]


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
