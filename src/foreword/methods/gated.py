"""`gated`: a prefix outside the tokens' softmax, multiplied by a gate that starts at zero.

Zhang et al. 2023, "LLaMA-Adapter", §3.2, eq. 4–6: per slot keys and values as in `direct`, and a gate per head,

    O = Attn(Q, K, V) + tanh(g) · Attn(Q, P_K, P_V),   g `[H]`, P_K `[H_kv, m, d_k]`, P_V `[H_kv, m, d_v]`

g = 0 at the start, so at first the output is that of the plain base, bit for bit. Real tokens keep their positions
(offset 0), since the prefix does not share their softmax. Because of the gates the result is not a key/value cache and
can't be exported as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foreword.errors import ConfigError
from foreword.methods.base import Method, ParameterGroup, Producer, Start, by_name
from foreword.methods.direct import DirectProducer
from foreword.models.slots import Slot
from foreword.prefix import Prefix
from foreword.prefix.kinds import GATED
from foreword.settings import check_types


@dataclass(frozen=True)
class GatedOptions:
    """gate_lr: the peak learning rate of the gates; None: that of the run."""

    gate_lr: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.gate_lr is not None and not self.gate_lr > 0:
            raise ConfigError("gate_lr", f"must be above 0, not {self.gate_lr}")


class GatedProducer(DirectProducer):
    """Trains the keys and values of `DirectProducer`, and a gate `[H]` per slot."""

    def __init__(self, start: Start, options: GatedOptions) -> None:
        super().__init__(start.prefix)
        heads = {slot.name: slot.num_heads for slot in start.base.slots}
        trained, dtype = start.prefix.extras, self.keys[0].dtype  # gates, if the start is a gated prefix
        zeros = {f"{name}.gate": torch.zeros(heads[name]) for name in start.prefix.slots}
        self.gates = nn.ParameterList([trained.get(name, zero).to(dtype) for name, zero in zeros.items()])
        self._gate_lr = options.gate_lr

    def forward(self) -> Prefix:
        prefix = super().forward()
        gates = {f"{name}.gate": gate for name, gate in zip(prefix.slots, self.gates, strict=True)}
        return Prefix(slots=prefix.slots, position_offset=0, base=prefix.base, merge=GATED.name, extras=gates)

    def groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(by_name(self, "keys", "values")), ParameterGroup(by_name(self, "gates"), self._gate_lr)]


def _start(start: Start, options: Any) -> Producer:
    return GatedProducer(start, options)


def _count(slots: Sequence[Slot], length: int, width: int, options: Any) -> int:
    return sum(slot.parameters(length) + slot.num_heads for slot in slots)


METHOD = Method(
    name="gated",
    summary="keys and values in a softmax of their own, added through a gate per head that starts at zero",
    formula="Σ_slots (m · H_kv · (d_k + d_v) + H)",
    default_lr=6e-2,
    options=GatedOptions,
    start=_start,
    count=_count,
    kind=lambda _: GATED,
    neutral=True,
)
