"""`lowrank`: a change of rank r to the initial keys and values of each layer.

    P(l) = init(l) + U(l) · V(l)ᵀ,   U(l) `[m, r]`, V(l) `[H_kv · (d_k + d_v), r]`

This is the form of LoRA (Hu et al. 2021, §4.1), applied to the prefix. V starts at zero, so training starts exactly
from the given initialisation, which stays frozen. For SmolLM2's shapes, with r = 8 and m = 32, it has 73 % fewer
parameters than the keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from foreword.errors import ConfigError
from foreword.methods.base import Method, Producer, Start
from foreword.methods.factored import FactoredProducer, unit_rows
from foreword.models.slots import Slot
from foreword.settings import check_types


@dataclass(frozen=True)
class LowrankOptions:
    """rank: r."""

    rank: int = 8

    def __post_init__(self) -> None:
        check_types(self)
        if self.rank < 1:
            raise ConfigError("rank", f"must be 1 or more, not {self.rank}")


class LowrankProducer(FactoredProducer):
    """factors: `[m, r]` per slot; right: `[r, H_kv · (d_k + d_v)]` per slot."""

    def __init__(self, start: Start, options: LowrankOptions) -> None:
        super().__init__(start.prefix, options.rank)
        lengths = [kv.length for kv in start.prefix.slots.values()]
        self.factors = nn.ParameterList([unit_rows(length, options.rank, self.dtype) for length in lengths])

    def left(self, number: int, length: int) -> Tensor:
        factor: Tensor = self.factors[number]
        return factor


def _start(start: Start, options: Any) -> Producer:
    return LowrankProducer(start, options)


def _count(slots: Sequence[Slot], length: int, width: int, options: Any) -> int:
    return int(options.rank * sum(length + slot.parameters(1) for slot in slots))


METHOD = Method(
    name="lowrank",
    summary="a low-rank change to the initial keys and values of each layer",
    formula="r · Σ_slots (m + H_kv · (d_k + d_v))",
    default_lr=3e-2,
    options=LowrankOptions,
    start=_start,
    count=_count,
)
