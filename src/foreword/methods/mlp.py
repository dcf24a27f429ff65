"""`mlp`: in training a small network makes keys and values. The finished prefix doesn't contain it.

Li & Liang 2021, §4.3: P = MLP(P'), with P' `[m, hidden]` learned, MLP = Linear → Tanh → Linear to the
keys and values of all layers. Here the network's last layer starts at zero and its output is added to
the initial prefix, so training starts exactly from the given initialisation:

    [K_1, V_1, …, K_L, V_L] = init + W₂ · tanh(W₁ · P' + b₁) + b₂
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foreword.errors import ConfigError
from foreword.methods.base import Method, Producer, Start
from foreword.models.slots import Slot
from foreword.prefix import KV, Prefix
from foreword.settings import check_types


@dataclass(frozen=True)
class MlpOptions:
    """hidden: width of the network's inner layer."""

    hidden: int = 512

    def __post_init__(self) -> None:
        check_types(self)
        if self.hidden < 1:
            raise ConfigError("hidden", f"must be 1 or more, not {self.hidden}")


class MlpProducer(Producer):
    """Trains a network: embedding `[m, width]` → `[m, hidden]` → `[m, Σ_slots H_kv · (d_k + d_v)]`.

    Its parameters are float32, or of the base's dtype if that is wider.
    """

    def __init__(self, initial: Prefix, embedding_width: int, options: MlpOptions) -> None:
        super().__init__()
        widest = max((tensor.dtype for _, tensor in initial.tensors()), key=lambda dtype: dtype.itemsize)
        self._initial = initial.to(torch.promote_types(widest, torch.float32))
        self._tensors = [(name, tensor) for name, kv in self._initial.slots.items() for tensor in kv]
        widths = [tensor.shape[0] * tensor.shape[2] for _, tensor in self._tensors]
        self.embedding = nn.Parameter(torch.randn(initial.length, embedding_width))
        self.inner = nn.Linear(embedding_width, options.hidden)
        self.outer = nn.Linear(options.hidden, sum(widths))
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)
        self._widths = widths
        self.to(self._tensors[0][1].dtype)

    def forward(self) -> Prefix:
        change = self.outer(torch.tanh(self.inner(self.embedding)))
        pairs: dict[str, list[torch.Tensor]] = {}
        for (name, start), piece in zip(self._tensors, change.split(self._widths, dim=-1), strict=True):
            heads, length, width = start.shape  # [m, H·d] → [H, m, d]
            delta = piece[:length].view(length, heads, width).transpose(0, 1)
            pairs.setdefault(name, []).append(start.to(delta.device) + delta)
        slots = {name: KV(*pair) for name, pair in pairs.items()}
        return Prefix(slots, self._initial.position_offset, self._initial.base)


def _start(start: Start, options: Any) -> Producer:
    return MlpProducer(start.prefix, start.width, options)


def _count(slots: Sequence[Slot], length: int, width: int, options: Any) -> int:
    outputs = sum(slot.parameters(1) for slot in slots)
    inner, outer = (width + 1) * options.hidden, (options.hidden + 1) * outputs
    return int(length * width + inner + outer)


METHOD = Method(
    name="mlp",
    summary="keys and values from an embedding and a two-layer network, dropped when finished",
    formula="m · width + (width + 1) · h + (h + 1) · 2 · L · H_kv · d",
    default_lr=4e-4,
    options=MlpOptions,
    start=_start,
    count=_count,
)
