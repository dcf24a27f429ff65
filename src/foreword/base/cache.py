"""A key/value cache that grows in place.

Transformers' dynamic cache copies itself at every token in every layer (`torch.cat`). At 32 rows this takes a quarter
of the time of a decoding step on CPU. Here a layer allocates spare memory and returns a view of the filled part.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

SPARE = (
    64  # a layer that must grow gets room for this many more tokens, or for half as many as it holds if that is more
)


def growing_cache(config: Any) -> DynamicCache:
    """Return an empty cache for a model of `config`.

    Full-attention layers grow in place; all other layers are Transformers' own.
    """
    cache = DynamicCache(config=config)
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[number] = GrowingLayer()
    return cache


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A layer whose `keys` and `values` `[B, H_kv, t, d]` are views of larger memory.

    If other code has replaced them (reordered, cropped), the next update copies them into new memory.
    Don't use it with gradients: an update writes into memory that earlier views share.
    """

    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self._room: tuple[Tensor, Tensor] | None = None
        self._shown: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        length = int(self.get_seq_length())
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        needed = length + int(key_states.shape[2])
        if not self._fits(needed):
            self._room = (
                _room(self.keys, key_states, length, needed),
                _room(self.values, value_states, length, needed),
            )
        assert self._room is not None
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, length:needed] = states
        self.keys, self.values = (room[:, :, :needed] for room in self._room)
        self._shown = self.keys, self.values
        return self._shown

    def _fits(self, needed: int) -> bool:
        """Return True if `keys` and `values` are the views shown last, in memory with room for `needed` tokens."""
        if self._room is None or self._shown is None:
            return False
        unchanged = self.keys is self._shown[0] and self.values is self._shown[1]
        return unchanged and needed <= self._room[0].shape[2]


def _room(cached: Tensor, states: Tensor, length: int, needed: int) -> Tensor:
    """Return new memory for `needed` tokens and more, which begins with the `length` tokens of `cached`."""
    room = states.new_empty(states.shape[0], states.shape[1], needed + max(SPARE, needed // 2), states.shape[3])
    if length:
        room[:, :, :length] = cached
    return room
