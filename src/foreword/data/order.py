"""The order of rows in training: a function of seed and position alone, so that a run can resume at any step.

Each epoch is a new permutation. If batches are padded, rows of similar length share a batch: the permutation is cut
into windows of several batches; each window is sorted by length and cut into batches; the batches are shuffled. This
avoids most of the padding. If batches are not padded, they are fully random, which is better for training
(docs/performance.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from foreword.data.views import Numbers

WINDOW = 16  # batches
HELD_OUT = 96  # the most rows that a run holds out


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    """Return the number of batches in one epoch. One of them can be smaller; no row is left out."""
    return math.ceil(num_rows / batch_size)


def batches(
    lengths: Sequence[int] | Numbers, batch_size: int, seed: int, start: int = 0, window: int = WINDOW
) -> Iterator[list[int]]:
    """Yield the row indices of batch `start`, `start + 1`, … without end.

    lengths: tokens of each row. window: number of batches in a window; 1 makes fully random batches.
    """
    per_epoch = steps_per_epoch(len(lengths), batch_size)
    epoch, first = divmod(start, per_epoch)
    while True:
        yield from _epoch(lengths, batch_size, seed, epoch, window)[first:]
        epoch, first = epoch + 1, 0


def permutation(num_rows: int, seed: int, epoch: int) -> list[int]:
    """Return a seeded random order of `num_rows` rows."""
    order: list[int] = torch.randperm(num_rows, generator=_generator(seed, epoch)).tolist()
    return order


def held_out(num_rows: int, most: int, seed: int) -> list[int]:
    """Return the rows, in order, that a run without a validation file holds out: a tenth, but at most `most`.

    Of fewer than ten rows one is held out; a single row is for training alone.
    """
    count = num_rows // 10 or int(num_rows > 1)
    return sorted(permutation(num_rows, seed, -1 % 2**31)[: min(most, count)])


def _epoch(lengths: Sequence[int] | Numbers, batch_size: int, seed: int, epoch: int, window: int) -> list[list[int]]:
    order = permutation(len(lengths), seed, epoch)
    in_order: list[list[int]] = []
    for start in range(0, len(order), window * batch_size):
        by_length = sorted(order[start : start + window * batch_size], key=lambda row: lengths[row])
        in_order += [by_length[index : index + batch_size] for index in range(0, len(by_length), batch_size)]
    shuffle = torch.randperm(len(in_order), generator=_generator(seed, epoch)).tolist()
    return [in_order[index] for index in shuffle]


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
