"""A key/value cache that grows in place.

Transformers' dynamic cache is copied whole at every token and layer (`torch.cat`), a quarter of the time of a CPU decoding
step at 32 rows. Here a layer has room to spare and shows the part that is filled.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

SPARE = 64  # tokens of room when it has to grow, or half as many as there are


def growing_cache(config: Any) -> DynamicCache:
    """An empty cache for a model of `config` whose full-attention layers grow in place; others are Transformers' own."""
    cache = DynamicCache(config=config)
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[number] = GrowingLayer()
    return cache


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """`keys`, `values` `[B, H_kv, t, d]` are views of larger memory. What reorders, crops or replaces them leaves other
    tensors there, which the next update copies. Not for gradients: it writes where earlier views look."""

    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self._room: tuple[Tensor, Tensor] | None = None
        self._shown: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        have = int(self.get_seq_length())
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        need = have + int(key_states.shape[2])
        if not self._fits(need):
            self._room = _room(self.keys, key_states, have, need), _room(self.values, value_states, have, need)
        assert self._room is not None
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, have:need] = states
        self.keys, self.values = (room[:, :, :need] for room in self._room)
        self._shown = self.keys, self.values
        return self._shown

    def _fits(self, need: int) -> bool:
        """Whether what is cached is what was shown last, with room behind it."""
        if self._room is None or self._shown is None:
            return False
        own = self.keys is self._shown[0] and self.values is self._shown[1]
        return own and need <= self._room[0].shape[2]


def _room(cached: Tensor, states: Tensor, have: int, need: int) -> Tensor:
    room = states.new_empty(states.shape[0], states.shape[1], need + max(SPARE, need // 2), states.shape[3])
    if have:
        room[:, :, :have] = cached
    return room
