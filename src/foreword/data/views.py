"""Sequences of items that make an item when it is asked for, and how many tokens the items of any sequence have."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
Numbers = npt.NDArray[np.int64]


def token_counts(items: Sequence[Any]) -> Numbers:
    """Return the number of tokens of each item, `[items]`. A sequence that knows them makes no item for it."""
    if isinstance(items, Made):
        return items.token_counts()
    return np.fromiter((item.num_tokens for item in items), np.int64, len(items))


class Made(Sequence[T]):
    """Items that are made when they are asked for. Subclasses make one, and know the tokens of all."""

    @abstractmethod
    def make(self, number: int) -> T:
        """Return item `number`, from 0 to the length less one."""

    @abstractmethod
    def token_counts(self) -> Numbers:
        """Return the number of tokens of each item, `[items]`, without making one."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return Chosen(self, range(*index.indices(len(self))))
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(index)
        return self.make(number)


class Chosen(Made[T]):
    """Some items of another sequence, by their numbers `[items]`, in that order."""

    def __init__(self, items: Sequence[T], numbers: npt.ArrayLike) -> None:
        self._items: Sequence[T] = items
        self._numbers: Numbers = np.asarray(numbers, np.int64)
        if isinstance(items, Chosen):  # of the items behind it, so that views don't stand on views
            self._items, self._numbers = items._items, items._numbers[self._numbers]

    def __len__(self) -> int:
        return len(self._numbers)

    def make(self, number: int) -> T:
        return self._items[int(self._numbers[number])]

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
