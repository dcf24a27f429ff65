"""What gated and memory prefixes add to the attention over the tokens. `reference_add` is the readable reference.

    gated    O + tanh(g) · softmax(s · Q P_Kᵀ) P_V      LLaMA-Adapter, Zhang et al. 2023, §3.2, eq. 4–6
    memory   O + φ(Q) · M,   φ = elu                     Prefix-Tuning+, Wang et al. 2025 (arXiv 2506.13674)

Both stay outside the softmax over the tokens. So with g = 0 or M = 0 the output does not change in a single bit.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from foreword.attention.backends import math_part
from foreword.attention.call import AttentionCall
from foreword.attention.merge import fold, pick, rows_of, unfold
from foreword.prefix.kinds import Addition, Gated


def add(output: Tensor, call: AttentionCall, addition: Addition, rows: Tensor | None) -> Tensor:
    """Return `output` `[B, H, n, d_v]` plus the addition in `rows` (None: every row).

    The prefix is never expanded to one copy per row.
    """
    addition = type(addition)(*(tensor.to(output.device, output.dtype) for tensor in addition))
    query = fold(pick(call.query, rows))  # [1, H, B·n, d_k]
    if isinstance(addition, Gated):
        added = torch.tanh(addition.gate)[:, None, None] * _attention(call, query, addition)
    else:
        added = F.elu(query) @ addition.matrix
    change = unfold(added, rows_of(call.query, rows))
    return output + change if rows is None else output.index_add(0, rows, change)


def _attention(call: AttentionCall, query: Tensor, gated: Gated) -> Tensor:
    """Return attention over the prefix alone, `[1, H, B·n, d_v]`, with the scale and softcap of the layer."""
    key, value = gated.key[None], gated.value[None]
    if call.softcap is not None or key.shape[-1] != value.shape[-1]:
        return math_part(replace(call, query=query), key, value, local=False).output
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, dropout_p=call.dropout, scale=call.scale, enable_gqa=grouped
    )


def reference_add(output: Tensor, call: AttentionCall, rows: list[Addition | None]) -> Tensor:
    """Return what `add` returns, one row and one formula at a time. rows: the addition of each row, or None."""
    return torch.stack([_one_row(output[row], call, row, addition) for row, addition in enumerate(rows)])


def _one_row(local: Tensor, call: AttentionCall, row: int, addition: Addition | None) -> Tensor:
    query = call.query[row]  # [H, n, d_k]
    if addition is None:
        return local
    if not isinstance(addition, Gated):
        return local + F.elu(query) @ addition.matrix.to(query)
    groups = query.shape[0] // addition.key.shape[0]
    key, value = (tensor.to(query).repeat_interleave(groups, 0) for tensor in (addition.key, addition.value))
    scores = query @ key.transpose(-1, -2) * call.scale
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    return local + torch.tanh(addition.gate.to(query))[:, None, None] * (torch.softmax(scores, -1) @ value)
