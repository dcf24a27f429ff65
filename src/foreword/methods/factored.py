"""What `shared` and `lowrank` have in common: a factored change that is added to the initial keys and values."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from foreword.methods.base import Producer, trainable
from foreword.prefix import KV, Prefix


class FactoredProducer(Producer):
    """keys and values = initial + left(slot) · right(slot), with left `[m, r]` and right `[r, H_kv · (d_k + d_v)]`.

    The right factors start at zero, so the first prefix is the initial one.
    """

    def __init__(self, initial: Prefix, rank: int) -> None:
        super().__init__()
        self._initial = Prefix(
            {name: KV(*map(trainable, kv)) for name, kv in initial.slots.items()}, initial.position_offset, initial.base
        )
        self.dtype: torch.dtype = next(iter(self._initial.slots.values())).key.dtype
        widths = [kv.key.shape[0] * (kv.key.shape[2] + kv.value.shape[2]) for kv in self._initial.slots.values()]
        self.right = nn.ParameterList([torch.zeros(rank, width, dtype=self.dtype) for width in widths])

    @abstractmethod
    def left(self, number: int, length: int) -> Tensor:
        """Return the left factor of slot `number`, `[length, r]`."""

    def forward(self) -> Prefix:
        slots = {}
        for number, (name, (key, value)) in enumerate(self._initial.slots.items()):
            heads, length, width = key.shape
            right = self.right[number]
            change = (self.left(number, length) @ right).view(length, heads, -1).transpose(0, 1)  # [H_kv, m, d_k + d_v]
            key_change, value_change = change.split([width, value.shape[2]], dim=-1)
            slots[name] = KV(key.to(right.device) + key_change, value.to(right.device) + value_change)
        return Prefix(slots, self._initial.position_offset, self._initial.base)


def unit_rows(length: int, rank: int, dtype: torch.dtype) -> Tensor:
    """Return random rows of norm about one. A step of the right factor then changes keys and values by as much."""
    return torch.randn(length, rank, dtype=dtype).div(rank**0.5)
