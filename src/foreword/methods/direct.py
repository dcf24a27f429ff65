"""`direct`: the keys and values themselves are the parameters.

Li & Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", §4.2, without the
reparameterisation of §4.3. Initialised from real activations (§7.4) it needs no MLP to be stable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from foreword.methods.base import Method, Producer, Start, trainable
from foreword.models.slots import Slot
from foreword.prefix import KV, Prefix


@dataclass(frozen=True)
class DirectOptions:
    """`direct` has no settings of its own."""


class DirectProducer(Producer):
    """Trains two parameters per slot: key `[num_kv_heads, length, key_dim]`, value `[num_kv_heads, length, value_dim]`.

    They are float32, or of the base's dtype if that is wider.
    """

    def __init__(self, initial: Prefix) -> None:
        super().__init__()
        self._initial = initial
        self.keys = nn.ParameterList([trainable(kv.key) for kv in initial.slots.values()])
        self.values = nn.ParameterList([trainable(kv.value) for kv in initial.slots.values()])

    def forward(self) -> Prefix:
        pairs = zip(self._initial.slots, self.keys, self.values, strict=True)
        slots = {name: KV(key, value) for name, key, value in pairs}
        return Prefix(slots, self._initial.position_offset, self._initial.base)


def _start(start: Start, options: Any) -> Producer:
    return DirectProducer(start.prefix)


def _count(slots: Sequence[Slot], length: int, width: int, options: Any) -> int:
    return sum(slot.parameters(length) for slot in slots)


METHOD = Method(
    name="direct",
    summary="keys and values of every layer, learned directly",
    formula="2 · L · m · H_kv · d",
    default_lr=6e-2,
    options=DirectOptions,
    start=_start,
    count=_count,
)
