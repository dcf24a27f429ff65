"""`conditioned`: a learned base prefix, and a small network that changes it for the input of each row.

After Clive et al. 2021, "Control Prefixes", and Liu et al. 2022, "Late Prompt Tuning", §3: a prompt that depends on the
instance. The network reads x̄ `[width]`, the mean input embedding of the prompt's tokens (no target, no padding).
Its output scales r directions along which the prefix moves:

    P(l, x) = base(l) + U · diag(s(x)) · V(l),   s(x) = W₂ · tanh(W₁ · norm(x̄) + b₁) + b₂

with U `[m, r]` shared by all layers, V(l) `[r, H_kv · (d_k + d_v)]`, W₁ `[h, width]`, W₂ `[r, h]`. V starts at zero, so
training starts exactly from the given initialisation. The change is computed once per row, before the first step of
generation. The result is a static prefix for this row (`base.inputs`), also in mixed batches. A conditioned prefix
can't be exported as a key/value cache; the static prefix for one input can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from foreword.base.inputs import vocabulary
from foreword.errors import ConfigError
from foreword.methods.base import Method, Producer, Start
from foreword.methods.direct import DirectProducer
from foreword.methods.factored import unit_rows
from foreword.models.slots import Slot
from foreword.prefix import Prefix
from foreword.prefix.kinds import CONDITIONED, NETWORK
from foreword.settings import check_types


@dataclass(frozen=True)
class ConditionedOptions:
    """rank: r. hidden: width h of the network."""

    rank: int = 8
    hidden: int = 32

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("rank", "hidden"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"must be 1 or more, not {getattr(self, name)}")


class ConditionedProducer(DirectProducer):
    """Trains the keys and values of `DirectProducer`, and U, V, W₁, b₁, W₂, b₂ as above."""

    def __init__(self, start: Start, options: ConditionedOptions) -> None:
        if vocabulary(start.base) == 0:
            raise ConfigError("method", f"conditioned needs input embeddings; {start.base.name} has none")
        super().__init__(start.prefix)
        dtype, rank, hidden = self.keys[0].dtype, options.rank, options.hidden
        self.left = nn.Parameter(unit_rows(start.prefix.length, rank, dtype))
        widths = [kv.key.shape[0] * (kv.key.shape[2] + kv.value.shape[2]) for kv in start.prefix.slots.values()]
        self.right = nn.ParameterList([torch.zeros(rank, width, dtype=dtype) for width in widths])
        self.inner = nn.Linear(start.width, hidden, dtype=dtype)
        self.outer = nn.Linear(hidden, rank, dtype=dtype)
        if start.prefix.kind.reads_input:
            self._copy_network(start.prefix)

    def _copy_network(self, prefix: Prefix) -> None:
        """Copy the network of a conditioned prefix. Raises `ConfigError` if it has other sizes."""
        network = self._network(list(prefix.slots))
        with torch.no_grad():
            for name, tensor in network.items():
                trained = prefix.extras[name]
                if trained.shape != tensor.shape:
                    raise ConfigError(
                        "init_prefix",
                        f"its {name} is {tuple(trained.shape)}; with these options it is {tuple(tensor.shape)}",
                    )
                tensor.copy_(trained)

    def _network(self, names: list[str]) -> dict[str, torch.Tensor]:
        """Return the extra tensors of the prefix, by name."""
        network = {
            "left": self.left, "inner": self.inner.weight, "inner_bias": self.inner.bias,
            "outer": self.outer.weight, "outer_bias": self.outer.bias,
        }  # fmt: skip
        network |= {f"right.{name}": right for name, right in zip(names, self.right, strict=True)}
        return {NETWORK + name: tensor for name, tensor in network.items()}

    def forward(self) -> Prefix:
        prefix = super().forward()
        network = self._network(list(prefix.slots))
        return replace(prefix, merge=CONDITIONED.name, extras=network)


def _start(start: Start, options: Any) -> Producer:
    return ConditionedProducer(start, options)


def _count(slots: Sequence[Slot], length: int, width: int, options: Any) -> int:
    rank, hidden = options.rank, options.hidden
    network = (width + 1) * hidden + (hidden + 1) * rank
    return int(sum(slot.parameters(length + rank) for slot in slots) + length * rank + network)


METHOD = Method(
    name="conditioned",
    summary="keys and values, moved for each row by a light network that reads the row's input",
    formula="Σ_slots (m + r) · H_kv · (d_k + d_v) + m · r + (width + 1) · h + (h + 1) · r",
    default_lr=6e-2,
    options=ConditionedOptions,
    start=_start,
    count=_count,
    kind=lambda _: CONDITIONED,
)
