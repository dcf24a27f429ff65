"""`mean`: every virtual token starts as the mean of the task's words, plus a little noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from foreword.base import Base
from foreword.base.inputs import vocabulary
from foreword.errors import ConfigError
from foreword.methods.base import Start
from foreword.prefix import KV, Prefix

NOISE = 0.1  # relative to the spread of the words; without noise, tokens that positions don't distinguish stay equal


def mean_start(words: Sequence[int], base: Base, length: int, seed: int) -> Start:
    """Return `length` embeddings `[m, width]` around the mean of the words' embeddings, with their keys and values.

    Raises `ConfigError` for a base without input embeddings.
    """
    if vocabulary(base) == 0:
        raise ConfigError("init", f"'mean' needs input embeddings; {base.name} has none")
    with torch.no_grad():
        vectors = base.model.get_input_embeddings()(torch.tensor([list(words)], device=base.device))[0].float()
    spread = vectors.std() if len(words) > 1 else vectors.abs().mean()
    noise = torch.randn(length, vectors.shape[1], generator=torch.Generator().manual_seed(seed)).to(vectors.device)
    embeddings = (vectors.mean(0) + NOISE * spread * noise).to(base.dtype)
    inputs = {"inputs_embeds": embeddings[None]}
    if base.model.config.is_encoder_decoder:
        inputs["decoder_inputs_embeds"] = embeddings[None]
    slots = {name: KV(*kv) for name, kv in base.capture(**inputs).items()}
    return Start(Prefix(slots, base.default_offset(length), base.fingerprint, method="mean"), embeddings, base)
