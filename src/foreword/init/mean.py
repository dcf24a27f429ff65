"""`mean`: every virtual token begins as the mean of the task's words, each moved a little of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from foreword.base import Base
from foreword.base.inputs import vocabulary
from foreword.errors import ConfigError
from foreword.methods.base import Start
from foreword.prefix import KV, Prefix

NOISE = 0.1  # of the words' own spread; equal tokens would get equal gradients where positions don't tell them apart


def mean_start(words: Sequence[int], base: Base, length: int, seed: int) -> Start:
    """`length` embeddings `[m, width]` around the mean of the words' embeddings, and the keys and values of them."""
    if vocabulary(base) == 0:
        raise ConfigError("init", f"'mean' needs input embeddings; {base.name} has none")
    with torch.no_grad():
        found = base.model.get_input_embeddings()(torch.tensor([list(words)], device=base.device))[0].float()
    spread = found.std() if len(words) > 1 else found.abs().mean()
    noise = torch.randn(length, found.shape[1], generator=torch.Generator().manual_seed(seed)).to(found.device)
    embeddings = (found.mean(0) + NOISE * spread * noise).to(base.dtype)
    inputs = {"inputs_embeds": embeddings[None]}
    if base.model.config.is_encoder_decoder:
        inputs["decoder_inputs_embeds"] = embeddings[None]
    slots = {name: KV(*kv) for name, kv in base.capture(**inputs).items()}
    return Start(Prefix(slots, base.default_offset(length), base.fingerprint, method="mean"), embeddings, base)
