"""`random`: noise with the mean and spread of the base's real keys and values, per slot, head and channel.

N(0, 1), the usual default, is far from real keys and values: key channels differ in scale by orders of
magnitude, and values are small.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foreword.base import Base
from foreword.prefix import KV, Prefix


def random_prefix(sample_ids: list[int], base: Base, *, length: int, seed: int) -> Prefix:
    """Return a random prefix of `length` tokens, with the statistics of the keys and values of `sample_ids`.

    The first token is left out of the statistics: it is an attention sink with another scale.
    """
    generator = torch.Generator().manual_seed(seed)
    captured = base.capture(torch.tensor([sample_ids]))
    slots = {
        name: KV(_like(kv.key, length, generator), _like(kv.value, length, generator)) for name, kv in captured.items()
    }
    return Prefix(slots, base.default_offset(length), base.fingerprint, method="random")


def _like(real: Tensor, length: int, generator: torch.Generator) -> Tensor:
    sample = real[:, 1:].float().cpu() if real.shape[1] > 2 else real.float().cpu()
    mean, spread = sample.mean(1, keepdim=True), sample.std(1, keepdim=True, unbiased=False)
    noise = torch.randn(real.shape[0], length, real.shape[2], generator=generator)
    return (mean + spread * noise).to(real)
