"""The reference: put each row's prefix before its keys, mask explicitly, take one softmax.

It is short and slow on purpose. Parity tests compare the two-part form in `merge` with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from foreword.attention.call import NEG_INF, AttentionCall, causal_mask
from foreword.prefix import KV


def reference_attention(
    call: AttentionCall, rows: list[KV | None], biases: Sequence[Tensor | None] | None = None
) -> Tensor:
    """Return the attention output `[B, H, n, d_v]`. `rows[b]` is the prefix of batch row b, or None.

    Row b computes softmax(s · q [P_K; K]ᵀ + [bias; mask]) [P_V; V]; a sink is one more column without a value.
    biases: the position bias of each row's prefix, `[H, n, m]`, or None for 0.
    """
    biases = biases or [None] * len(rows)
    return torch.cat([_one_row(call, index, kv, biases[index]) for index, kv in enumerate(rows)])


def _one_row(call: AttentionCall, index: int, kv: KV | None, bias: Tensor | None) -> Tensor:
    query, key, value = (tensor[index : index + 1] for tensor in (call.query, call.key, call.value))
    length = 0 if kv is None else kv.length
    if kv is not None:
        key = torch.cat([kv.key.to(key).unsqueeze(0), key], dim=2)
        value = torch.cat([kv.value.to(value).unsqueeze(0), value], dim=2)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query @ key.transpose(-1, -2)) * call.scale
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    scores = scores.float() if scores.dtype.itemsize < 4 else scores
    if (mask := _local_mask(call, index, scores)) is not None:
        scores = scores + F.pad(mask.to(scores.dtype), (length, 0))
    if bias is not None:
        scores = scores + F.pad(bias.to(scores.dtype), (0, scores.shape[-1] - length))
    if call.sinks is not None:
        column = call.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, column], dim=-1)
    hidden = (scores == NEG_INF).all(-1, keepdim=True)  # a padded query without a prefix
    weights = torch.softmax(scores.masked_fill(hidden, 0.0), dim=-1).masked_fill(hidden, 0.0)
    weights = weights[..., : value.shape[2]]
    weights = F.dropout(weights.to(value.dtype), call.dropout, training=call.dropout > 0)
    return weights @ value


def _local_mask(call: AttentionCall, index: int, scores: Tensor) -> Tensor | None:
    if call.causal:
        return causal_mask(scores.shape[-2], scores)
    return None if call.mask is None else call.mask[index : index + 1]
