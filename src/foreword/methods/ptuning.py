"""`ptuning`: in training a prompt encoder makes input embeddings. The finished prefix doesn't contain it.

Liu et al. 2021, "GPT Understands, Too", §3.2, eq. 5–6: the virtual tokens' embeddings are not independent,
h_i = MLP([LSTM→(x_0 … x_i); LSTM←(x_i … x_m)]). Here the encoder's last layer starts at zero and its output is
added to the initial embeddings, so training starts exactly from the given initialisation:

    P = init + W₂ · ReLU(W₁ · BiLSTM(x) + b₁) + b₂         (encoder "lstm")
    P = init + W₂ · ReLU(W₁ · x + b₁) + b₂                 (encoder "mlp")

with x `[m, width]` learned too. All the rest is the same as in `prompt`. For an encoder, a template can say where the
virtual tokens stand: `{input} [V]*3 is [MASK]` (§3.1, Figure 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foreword.base.prompts import prompt_kind
from foreword.errors import ConfigError
from foreword.methods.base import Method, Producer, Start
from foreword.methods.prompt import PromptProducer
from foreword.models.slots import Slot
from foreword.settings import check_types


@dataclass(frozen=True)
class PtuningOptions:
    """encoder: lstm or mlp. hidden: width of the encoder, a multiple of 2 for the two directions."""

    encoder: Literal["lstm", "mlp"] = "lstm"
    hidden: int = 256

    def __post_init__(self) -> None:
        check_types(self)
        if self.hidden < 2 or self.hidden % 2:
            raise ConfigError("hidden", f"must be an even number of 2 or more, not {self.hidden}")


class PtuningProducer(PromptProducer):
    """Trains an encoder: inputs `[m, width]` → (BiLSTM → `[m, hidden]`) → `[m, hidden]` → `[m, width]`."""

    def __init__(self, start: Start, options: PtuningOptions) -> None:
        super().__init__(start)
        initial = self._first
        del self.embedding
        size, hidden = start.width, options.hidden
        self.inputs = nn.Parameter(torch.randn(initial.shape, dtype=initial.dtype))
        lstm = nn.LSTM(size, hidden // 2, bidirectional=True, batch_first=True)
        self.lstm = lstm.to(initial.dtype) if options.encoder == "lstm" else None
        self.inner = nn.Linear(hidden if options.encoder == "lstm" else size, hidden, dtype=initial.dtype)
        self.outer = nn.Linear(hidden, size, dtype=initial.dtype)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def prompt(self) -> Tensor:
        encoded = self.inputs[None] if self.lstm is None else self.lstm(self.inputs[None])[0]
        change: Tensor = self.outer(torch.relu(self.inner(encoded)))[0]
        return self._first + change


def _start(start: Start, options: Any) -> Producer:
    return PtuningProducer(start, options)


def _count(slots: Sequence[Slot], length: int, width: int, options: Any) -> int:
    half, hidden = options.hidden // 2, options.hidden
    lstm = 2 * (4 * half * (width + half) + 8 * half) if options.encoder == "lstm" else 0
    inner = ((hidden if lstm else width) + 1) * hidden
    return int(length * width + lstm + inner + (hidden + 1) * width)


METHOD = Method(
    name="ptuning",
    summary="input embeddings from a BiLSTM or MLP prompt encoder, dropped when finished",
    formula="m · width + (encoder: 4 · h · (width + h/2) + 8 · h + (h + 1) · h for lstm) + (h + 1) · width",
    default_lr=6e-3,
    options=PtuningOptions,
    start=_start,
    count=_count,
    kind=prompt_kind,
)
