"""`prompt`: learn m input embeddings.

Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", §2: [P; X] with P `[m, width]`
learned and the model frozen. In a full-attention decoder the keys and values of the m positions don't depend on
later tokens. So the model runs once on P, and the keys and values are put in front of every row. This equals P in
front of every row:

    K_l, V_l = the keys and values that layer l computes for P at positions 0 … m − 1

A step computes m tokens instead of B · m, and the result is a `Prefix` like any other. It also contains the embeddings
(`extras["embeddings"]`), so that a later run can train them further.

In other models (encoders, encoder–decoders, hybrids, windows) the two are not equal. There P is inserted among the
input embeddings of every row (kind "embedding"): before the first real token, after an encoder's [CLS], or in the
places `[V]` of a template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foreword.attach import capture
from foreword.base.prompts import insertion_obstacle, prompt_kind
from foreword.errors import ConfigError
from foreword.methods.base import Method, Producer, Start, trainable
from foreword.models.slots import Slot
from foreword.prefix import EMBEDDINGS, KV, Prefix
from foreword.prefix.kinds import EMBEDDING


@dataclass(frozen=True)
class PromptOptions:
    """`prompt` has no settings of its own."""


class PromptProducer(Producer):
    """Trains embedding `[m, width]`, in float32 or the base's dtype if that is wider.

    frozen: the number of first embeddings that keep their initial values.
    """

    frozen = 0

    def __init__(self, start: Start) -> None:
        super().__init__()
        self._base, self._initial = start.base, start.prefix
        self._inserted = prompt_kind(start.base.model).inserted
        self.register_buffer("_first", trainable(_require_embeddings(start, self._inserted)), persistent=False)
        self._first: Tensor
        self.embedding = nn.Parameter(self._first.clone())

    def prompt(self) -> Tensor:
        """Return the embeddings of this step, `[m, width]`."""
        return self.embedding

    def forward(self) -> Prefix:
        embeddings = torch.cat([self._first[: self.frozen], self.prompt()[self.frozen :]])
        extras = {EMBEDDINGS: embeddings}
        if self._inserted:
            return Prefix(slots={}, position_offset=0, base=self._base.fingerprint, merge=EMBEDDING.name, extras=extras)
        captured = capture(
            self._base.model, self._base.model_slots, inputs_embeds=embeddings[None].to(self._base.dtype)
        )
        slots = {
            name: KV(*(tensor[0][:, : kv.length] for tensor in captured[name]))
            for name, kv in self._initial.slots.items()
        }
        return Prefix(slots, self._initial.position_offset, self._base.fingerprint, extras=extras)


def _require_embeddings(start: Start, inserted: bool) -> Tensor:
    """Return the embeddings to start from. Raises `ConfigError` if there are none or none can be inserted."""
    if inserted and (obstacle := insertion_obstacle(start.base)) is not None:
        raise ConfigError("method", obstacle)
    if start.embeddings is None:
        raise ConfigError(
            "init", "this start has no input embeddings; use text or vocab, or a prefix made by prompt or ptuning"
        )
    return start.embeddings


def _start(start: Start, options: Any) -> Producer:
    return PromptProducer(start)


def _count(slots: Sequence[Slot], length: int, width: int, options: Any) -> int:
    return length * width


METHOD = Method(
    name="prompt",
    summary="input embeddings, turned into keys and values by the frozen model or inserted in every row",
    formula="m · width",
    default_lr=6e-2,
    options=PromptOptions,
    start=_start,
    count=_count,
    kind=prompt_kind,
)
