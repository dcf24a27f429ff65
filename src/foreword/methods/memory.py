"""`memory`: no keys; for each head a matrix that acts on the query, added to the attention.

Wang et al. 2025, "Prefix-Tuning+" (arXiv 2506.13674): a prefix inside the softmax competes with the input. So it is
taken out of the softmax, and a matrix takes the place of its keys and values,

    O = Attn(Q, K, V) + φ(Q) · M,   M `[H, d_k, d_v]`, φ = elu

M = 0 at the start, so at first the output is that of the plain base, bit for bit. M has no length: `length` and the
initialisation have no meaning here. Q is the query as attention sees it, after rotary embedding. There are no keys, so
the result is not a key/value cache and can't be exported as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foreword.methods.base import Method, Producer, Start, trainable
from foreword.models.slots import Slot
from foreword.prefix import Prefix
from foreword.prefix.kinds import MEMORY


@dataclass(frozen=True)
class MemoryOptions:
    """`memory` has no settings of its own."""


class MemoryProducer(Producer):
    """Trains a matrix `[H, d_k, d_v]` per slot, in float32 or the base's dtype if that is wider."""

    def __init__(self, start: Start) -> None:
        super().__init__()
        self._base = start.prefix.base
        trained = {} if start.prefix.kind.has_keys else start.prefix.extras  # matrices, if the start is a memory
        names = {name.removesuffix(".memory") for name in trained} or set(start.prefix.slots)
        slots = [slot for slot in start.base.slots if slot.name in names]
        self._names = [slot.name for slot in slots]
        zeros = [torch.zeros(slot.num_heads, slot.key_dim, slot.value_dim, dtype=start.base.dtype) for slot in slots]
        self.matrices = nn.ParameterList(
            [trainable(trained.get(f"{name}.memory", zero)) for name, zero in zip(self._names, zeros, strict=True)]
        )

    def forward(self) -> Prefix:
        matrices = {f"{name}.memory": matrix for name, matrix in zip(self._names, self.matrices, strict=True)}
        return Prefix(slots={}, position_offset=0, base=self._base, merge=MEMORY.name, extras=matrices)


def _start(start: Start, options: Any) -> Producer:
    return MemoryProducer(start)


def _count(slots: Sequence[Slot], length: int, width: int, options: Any) -> int:
    return sum(slot.num_heads * slot.key_dim * slot.value_dim for slot in slots)


METHOD = Method(
    name="memory",
    summary="per head a matrix that acts on the query, added to the attention's output",
    formula="Σ_slots H · d_k · d_v",
    default_lr=6e-4,
    options=MemoryOptions,
    start=_start,
    count=_count,
    kind=lambda _: MEMORY,
    neutral=True,
)
