"""Attention mass: the share of attention that real queries give to each virtual token.

For a query q and the prefix's key k_j it is exp(s · q·k_j − lse), with lse = logaddexp(lse_P, lse_local) over prefix
and tokens together. This is the weight with which the token's value enters the output. "Heavy hitters" by this measure
have most of the effect of a cache (Zhang et al. 2023, "H2O", §3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foreword import status
from foreword.attach import observed
from foreword.attention.backends import math_part
from foreword.attention.call import AttentionCall
from foreword.attention.merge import with_sinks
from foreword.base import Base
from foreword.data.lm_rows import Example
from foreword.errors import UnsupportedModelError
from foreword.prefix import KV, Prefix
from foreword.tasks.lm import collate, target_logits


def attention_mass(base: Base, prefix: Prefix, examples: Sequence[Example], batch_size: int = 16) -> dict[str, Tensor]:
    """Return slot name → attention mass `[num_kv_heads, length]`, float64 on the CPU.

    It is the mean over the tokens of `examples` (prompts and targets, without padding) and over the query heads that
    share the key.
    Raises `UnsupportedModelError` unless `base` is a decoder, `AttachError` if its attention can't be observed,
    `PrefixMismatchError` for a prefix of another base.
    """
    require_decoder_alone(base)
    base.require_fit(prefix)
    totals = {
        name: torch.zeros(kv.key.shape[:2], dtype=torch.float64, device=base.device)
        for name, kv in prefix.slots.items()
    }
    counts = dict.fromkeys(prefix.slots, 0)
    real = torch.ones(0)  # set for each batch, read by `observe`

    def observe(slot: str, call: AttentionCall) -> None:
        if slot not in totals:
            return
        weights = prefix_weights(call, prefix.slots[slot]).double()  # [B, H, n, m]
        summed = (weights * real[:, None, :, None].to(weights.device)).sum((0, 2))  # [H, m]
        heads, length = totals[slot].shape
        totals[slot] += summed.view(heads, -1, length).mean(1).to(totals[slot].device)
        counts[slot] += int(real.sum())

    with torch.no_grad(), observed(base.model, base.model_slots, [prefix], observe):
        for start in range(0, len(examples), batch_size):
            status.doing("measuring attention", start, len(examples))
            chosen = examples[start : start + batch_size]
            real = _real(chosen, base.device)
            target_logits(base, collate(chosen, base))
    return {name: (total / max(1, counts[name])).cpu() for name, total in totals.items()}


def require_decoder_alone(base: Base) -> None:
    """Raise `UnsupportedModelError` unless all slots of `base` are those of a decoder."""
    if any(slot.role != "decoder" for slot in base.slots):
        raise UnsupportedModelError(f"compressing needs a decoder; {base.name} is a {type(base.model).__name__}")


def prefix_weights(call: AttentionCall, kv: KV) -> Tensor:
    """Return the attention weight of each virtual token, `[B, H, n, length]`. kv: key `[H_kv, length, d_k]`.

    The weights of virtual tokens, real tokens and a sink sum to 1.
    """
    key = kv.key.to(call.query).repeat_interleave(call.query.shape[1] // kv.key.shape[0], 0)
    scores = (call.query @ key.transpose(-1, -2)) * call.scale
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    local = math_part(call, call.key, call.value, local=True)
    local = local if call.sinks is None else with_sinks(local, call.sinks)
    scores = scores.to(local.lse.dtype)
    lse = torch.logaddexp(torch.logsumexp(scores, -1), local.lse)
    return torch.exp(scores - lse.unsqueeze(-1))


def _real(examples: Sequence[Example], device: torch.device) -> Tensor:
    """Return 1 for each token of a collated batch and 0 for padding, `[B, n]`. A batch has no row's last token."""
    sizes = torch.tensor([example.num_tokens - 1 for example in examples], device=device)
    return (torch.arange(int(sizes.max()), device=device) < sizes[:, None]).double()
