"""Exact two-part attention: the prefix and the tokens each get their own softmax, then merge.

    O = α · Attn(Q, P_K, P_V) + (1 − α) · Attn(Q, K, V),   α = exp(lse_P − logaddexp(lse_P, lse_local))

This equals attention over the concatenation, because a softmax over two blocks is the mean of the
blocks' softmaxes weighted by their partition functions (the identity behind flash attention's
tiling, Dao et al. 2022, §3.1, and ring attention, Liu et al. 2023). The prefix part has no mask and
is the same for each row, so its rows fold into one query axis and the prefix is never expanded.

Backward: each part's own flash backward, given the *merged* output and log-sum-exp, recomputes the
merged probabilities exp(s − lse) and so yields the right gradients; dQ is the sum of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from foreword.attention.backends import Flash, Part, math_part
from foreword.attention.call import NEG_INF, AttentionCall
from foreword.prefix import KV


def two_part_attention(call: AttentionCall, pairs: Sequence[tuple[Tensor | None, KV]], flash: Flash | None) -> Tensor:
    """Attention output `[B, H, n, d_v]` where the rows of each pair also see its prefix.

    pairs: (row index tensor or None for every row, that group's keys and values); no row twice.
    flash: the backend that computes `call`; None: plain tensor operations.
    """
    dtype, device = call.query.dtype, call.query.device
    live = [(rows, kv) for rows, kv in pairs if kv.length]
    flat = [tensor.to(device, dtype) for _, kv in live for tensor in kv]
    rows = [index for index, _ in live]
    if flash is None:
        return _math(call, rows, flat)
    output: Tensor = TwoPart.apply(call, flash, rows, call.query, call.key, call.value, *flat)  # type: ignore[no-untyped-call]
    return output


class TwoPart(torch.autograd.Function):
    """The fast path: flash kernels for both parts, one fused backward."""

    @staticmethod
    def forward(
        ctx: Any,
        call: AttentionCall,
        flash: Flash,
        rows: list[Tensor | None],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *prefixes: Tensor,
    ) -> Tensor:
        mask, causal, scale = call.mask, call.causal, call.scale
        part = flash.forward(query, key, value, mask, causal, scale)
        for number, index in enumerate(rows):
            pk, pv = prefixes[2 * number : 2 * number + 2]
            own = flash.forward(fold(pick(query, index)), pk[None], pv[None], None, False, scale)
            local = Part(pick(part.output, index), pick(part.lse, index))
            merged = merge(_with_hidden(local, call.hidden, index), unfold_part(own, rows_of(query, index)))
            part = merged if index is None else _put(part, index, merged)
        ctx.save_for_backward(query, key, value, mask, part.output, part.lse, *prefixes)
        ctx.settings = causal, scale, flash, rows
        return part.output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, output, lse, *prefixes = ctx.saved_tensors
        causal, scale, flash, rows = ctx.settings
        part = Part(output, lse)
        dq, dk, dv = flash.backward(grad, query, key, value, part, mask, causal, scale)
        grads: list[Tensor] = []
        for number, index in enumerate(rows):
            pk, pv = prefixes[2 * number : 2 * number + 2]
            own = Part(fold(pick(output, index)), fold_lse(pick(lse, index)))
            dq_own, dpk, dpv = flash.backward(
                fold(pick(grad, index)), fold(pick(query, index)), pk[None], pv[None], own, None, False, scale
            )
            dq_own = unfold(dq_own, rows_of(query, index))
            dq = dq + dq_own if index is None else dq.index_add(0, index, dq_own)
            grads += [dpk[0], dpv[0]]
        return (None, None, None, dq, dk, dv, *grads)


def _math(call: AttentionCall, rows: list[Tensor | None], prefixes: list[Tensor]) -> Tensor:
    part = math_part(call, call.key, call.value, local=True)
    for number, index in enumerate(rows):
        pk, pv = prefixes[2 * number : 2 * number + 2]
        folded = replace(call, query=fold(pick(call.query, index)))
        own = unfold_part(math_part(folded, pk[None], pv[None], local=False), rows_of(call.query, index))
        merged = merge(Part(pick(part.output, index), pick(part.lse, index)), own)
        part = merged if index is None else _put(part, index, merged)
    return part.output


def merge(local: Part, prefix: Part) -> Part:
    """Two softmax parts over the same queries as one; `local.lse` may be −∞, `prefix.lse` not."""
    lse = torch.logaddexp(local.lse, prefix.lse)
    alpha = torch.exp(prefix.lse - lse).unsqueeze(-1).to(local.output.dtype)
    return Part(torch.lerp(local.output, prefix.output, alpha), lse)


def fold(tensor: Tensor) -> Tensor:
    """`[B, H, n, d]` → `[1, H, B·n, d]`; free of copies where `[B, n, H, d]` lies in memory."""
    batch, heads, n, width = tensor.shape
    return tensor.transpose(0, 1).reshape(1, heads, batch * n, width)


def fold_lse(lse: Tensor) -> Tensor:
    """`[B, H, n]` → `[1, H, B·n]`, kept in the memory order flash kernels write, `[B, n, H]`."""
    batch, heads, n = lse.shape
    return lse.transpose(1, 2).reshape(1, batch * n, heads).transpose(1, 2)


def unfold(tensor: Tensor, batch: int) -> Tensor:
    """The inverse of `fold`: `[1, H, B·n, d]` → `[B, H, n, d]`."""
    _, heads, queries, width = tensor.shape
    return tensor.view(heads, batch, queries // batch, width).transpose(0, 1)


def unfold_part(part: Part, batch: int) -> Part:
    """`unfold` for an output together with its log-sum-exp `[1, H, B·n]`."""
    _, heads, queries = part.lse.shape
    return Part(unfold(part.output, batch), part.lse.reshape(heads, batch, queries // batch).transpose(0, 1))


def pick(tensor: Tensor, index: Tensor | None) -> Tensor:
    return tensor if index is None else tensor.index_select(0, index)


def rows_of(tensor: Tensor, index: Tensor | None) -> int:
    return int(tensor.shape[0] if index is None else index.shape[0])


def _put(part: Part, index: Tensor, rows: Part) -> Part:
    return Part(part.output.index_copy(0, index, rows.output), part.lse.index_copy(0, index, rows.lse))


def _with_hidden(local: Part, hidden: Tensor | None, index: Tensor | None) -> Part:
    """A flash kernel reports lse 0 for a query that sees no key; the merge needs −∞."""
    if hidden is None:
        return local
    where = hidden if hidden.shape[0] == 1 else pick(hidden, index)
    return Part(local.output, local.lse.masked_fill(where, NEG_INF))
