"""Sequences of items that make an item when it is asked for, and how many tokens the items of any sequence have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
Numbers = npt.NDArray[np.int64]


def token_counts(items: Sequence[Any]) -> Numbers:
    """Return the number of tokens of each item, `[items]`. A sequence that knows them makes no item for it."""
    known = getattr(items, "token_counts", None)
    if known is not None:
        counts: Numbers = known()
        return counts
    return np.fromiter((item.num_tokens for item in items), np.int64, len(items))


class Chosen(Sequence[T]):
    """Some items of another sequence, by their numbers `[items]`, in that order."""

    def __init__(self, items: Sequence[T], numbers: npt.ArrayLike) -> None:
        self._items = items
        self._numbers = np.asarray(numbers, np.int64)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return Chosen(self._items, self._numbers[index])
        return self._items[int(self._numbers[index])]

    def token_counts(self) -> Numbers:
        return token_counts(self._items)[self._numbers]


def spread(items: Sequence[T], count: int) -> Sequence[T]:
    """Return `count` of the items at equal distances; all of them if there are no more."""
    if count >= len(items):
        return items
    return Chosen(items, [index * len(items) // count for index in range(count)])


def without(items: Sequence[T], left_out: Sequence[int]) -> Sequence[T]:
    """Return the items but for those of the given numbers."""
    kept = np.ones(len(items), bool)
    kept[np.asarray(left_out, np.int64)] = False
    return Chosen(items, np.flatnonzero(kept))
