"""`shared`: one prefix for all layers, and for each layer a linear map of it.

    P(l) = init(l) + P_shared · W(l),   P_shared `[m, r]`, W(l) `[r, H_kv · (d_k + d_v)]`

with a small shared width r. The maps start at zero, so training starts exactly from the given initialisation, which
stays frozen. Features that several layers need are learned once. With r = 8 and m = 32 it has about four times fewer
parameters than the keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foreword.errors import ConfigError
from foreword.methods.base import Method, Producer, Start
from foreword.methods.factored import FactoredProducer
from foreword.models.slots import Slot
from foreword.settings import check_types


@dataclass(frozen=True)
class SharedOptions:
    """width: the width r of the shared prefix."""

    width: int = 8

    def __post_init__(self) -> None:
        check_types(self)
        if self.width < 1:
            raise ConfigError("width", f"must be 1 or more, not {self.width}")


class SharedProducer(FactoredProducer):
    """Trains prefix `[m, r]` and right, one map `[r, H_kv · (d_k + d_v)]` per slot."""

    def __init__(self, start: Start, options: SharedOptions) -> None:
        super().__init__(start.prefix, options.width)
        # larger numbers than in lowrank: all layers share P, so P should change little; the maps learn at a lower rate
        self.prefix = nn.Parameter(torch.randn(start.prefix.length, options.width, dtype=self.dtype))

    def left(self, number: int, length: int) -> Tensor:
        return self.prefix[:length]


def _start(start: Start, options: Any) -> Producer:
    return SharedProducer(start, options)


def _count(slots: Sequence[Slot], length: int, width: int, options: Any) -> int:
    return int(length * options.width + options.width * sum(slot.parameters(1) for slot in slots))


METHOD = Method(
    name="shared",
    summary="one prefix for all layers, mapped into each by a small matrix",
    formula="m · r + r · Σ_slots H_kv · (d_k + d_v)",
    default_lr=2e-2,
    options=SharedOptions,
    start=_start,
    count=_count,
)
