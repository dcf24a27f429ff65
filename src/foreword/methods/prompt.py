"""`prompt`: m input embeddings are learned; the frozen model turns them into keys and values.

Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", §2: [P; X] with P `[m, hidden_size]`
learned and the model frozen. In a full-attention decoder the keys and values of the m positions depend on
nothing behind them, so prepending P to every row is the same function as running the model once on P and
putting the keys and values in front:

    K_l, V_l = the keys and values that layer l computes for P at positions 0 … m − 1

m tokens a step instead of B · m, and the result is a `Prefix` like any other. The embeddings are kept with it
(`extras["embeddings"]`), so that a run can go on from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from foreword.attention import capture
from foreword.errors import ConfigError
from foreword.methods.base import Method, Producer, Start, trainable
from foreword.models.architectures import architecture_of
from foreword.models.base import Base
from foreword.models.slots import Slot
from foreword.prefix import KV, Prefix

EMBEDDINGS = "embeddings"


@dataclass(frozen=True)
class PromptOptions:
    """`prompt` has no settings of its own."""


class PromptProducer(Producer):
    """embedding `[m, hidden_size]`, in float32 or the base's wider dtype."""

    def __init__(self, start: Start) -> None:
        super().__init__()
        self._base, self._offset = start.base, start.prefix.position_offset
        self.embedding = nn.Parameter(trainable(require_embeddings(start)))

    def prompt(self) -> Tensor:
        """The embeddings of this step, `[m, hidden_size]`."""
        return self.embedding

    def forward(self) -> Prefix:
        embeddings = self.prompt()
        made = capture(self._base.model, self._base.model_slots, inputs_embeds=embeddings[None].to(self._base.dtype))
        slots = {name: KV(kv.key[0], kv.value[0]) for name, kv in made.items()}
        return Prefix(slots, self._offset, self._base.fingerprint, extras={EMBEDDINGS: embeddings})


def require_embeddings(start: Start) -> Tensor:
    """The embeddings to start from. Raises `ConfigError` where a prompt would not equal its keys and values."""
    _require_causal(start.base)
    if start.embeddings is None:
        raise ConfigError(
            "init", "this start has no input embeddings; use text or vocab, or a prefix made by prompt or ptuning"
        )
    return start.embeddings


def _require_causal(base: Base) -> None:
    """A prompt equals its keys and values only where every layer attends to all that stands before, and to nothing else."""
    slots = base.model_slots
    if any(slot.role != "decoder" for slot in slots.slots):
        raise ConfigError("method", f"prompt needs a decoder; {base.name} is none")
    if architecture_of(base.model).recurrent:
        raise ConfigError("method", f"prompt needs attention alone; {base.name} has recurrent or convolutional layers")
    window = next((slot for slot in slots.slots if slot.sliding_window is not None), None)
    if window is not None:
        raise ConfigError(
            "method", f"prompt needs full attention; {window.name} of {base.name} sees {window.sliding_window} tokens"
        )


def _start(start: Start, options: Any) -> Producer:
    return PromptProducer(start)


def _count(slots: Sequence[Slot], length: int, hidden_size: int, options: Any) -> int:
    return length * hidden_size


METHOD = Method(
    name="prompt",
    summary="input embeddings, turned into keys and values by the frozen model",
    formula="m · hidden_size",
    default_lr=3e-2,
    options=PromptOptions,
    start=_start,
    count=_count,
)
