"""Exact two-part attention: the prefix and the tokens each get their own softmax, then merge.

    O = α · Attn(Q, P_K, P_V) + (1 − α) · Attn(Q, K, V),   α = exp(lse_P − logaddexp(lse_P, lse_local))

This equals attention over the concatenation, because a softmax over two blocks is the mean of the
blocks' softmaxes weighted by their partition functions (the identity behind flash attention's
tiling, Dao et al. 2022, §3.1, and ring attention, Liu et al. 2023). The prefix part has no mask and
is the same for each row, so its rows fold into one query axis and the prefix is never expanded.

Backward: each part's own flash backward, given the *merged* output and log-sum-exp, recomputes the
merged probabilities exp(s − lse) and so yields the right gradients; dQ is the sum of both.

An attention sink (gpt-oss) is a third part with value zero: it joins the log-sum-exp and scales the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
    rows = [index for index, _ in live]
    flat = [tensor.to(device, dtype) for _, kv in live for tensor in kv]
    if flash is None:
        return _math(call, rows, flat)
    width, value_width = call.query.shape[-1], call.value.shape[-1]
    widest = -(-max(width, value_width) // flash.multiple) * flash.multiple
    if {width, value_width} != {widest}:  # kernels want one width; zeros change neither scores nor outputs
        call = replace(
            call, query=widen(call.query, widest), key=widen(call.key, widest), value=widen(call.value, widest)
        )
        flat = [widen(tensor, widest) for tensor in flat]
    output: Tensor = TwoPart.apply(  # type: ignore[no-untyped-call]
        call, flash, rows, call.query, call.key, call.value, call.sinks, *flat
    )
    return output[..., :value_width]


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
        sinks: Tensor | None,
        *prefixes: Tensor,
    ) -> Tensor:
        mask, hidden, causal, scale = call.mask, call.hidden, call.causal, call.scale
        part = flash.forward(query, key, value, mask, causal, scale)
        if sinks is not None:
            part, hidden = with_sinks(_with_hidden(part, hidden, None), sinks), None
        for number, index in enumerate(rows):
            pk, pv = prefixes[2 * number : 2 * number + 2]
            own = flash.forward(fold(pick(query, index)), pk[None], pv[None], None, False, scale)
            local = Part(pick(part.output, index), pick(part.lse, index))
            merged = merge(_with_hidden(local, hidden, index), unfold_part(own, rows_of(query, index)))
            part = merged if index is None else _put(part, index, merged)
        ctx.save_for_backward(query, key, value, mask, part.output, part.lse, sinks, *prefixes)
        ctx.settings = causal, scale, flash, rows
        return part.output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, output, lse, sinks, *prefixes = ctx.saved_tensors
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
        dsinks = None if sinks is None or not ctx.needs_input_grad[6] else _sinks_gradient(grad, part, sinks)
        return (None, None, None, dq, dk, dv, dsinks, *grads)


def _math(call: AttentionCall, rows: list[Tensor | None], prefixes: list[Tensor]) -> Tensor:
    part = math_part(call, call.key, call.value, local=True)
    if call.sinks is not None:
        part = with_sinks(part, call.sinks)
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


def with_sinks(part: Part, sinks: Tensor) -> Part:
    """`part` with one more key per head, of logit `sinks` `[H]` and value zero."""
    logits = sinks.to(part.lse).view(1, -1, 1)
    lse = torch.logaddexp(part.lse, logits)
    share = torch.exp(part.lse - lse).unsqueeze(-1).to(part.output.dtype)
    return Part(part.output * share, lse)


def _sinks_gradient(grad: Tensor, part: Part, sinks: Tensor) -> Tensor:
    """dL/d sinks `[H]`: with value zero, −Σ p_sink · (dO · O)."""
    weight = torch.exp(sinks.to(part.lse).view(1, -1, 1) - part.lse)
    return -(weight * (grad * part.output).sum(-1)).sum((0, 2)).to(sinks.dtype)


def widen(tensor: Tensor, width: int) -> Tensor:
    """`tensor` with zeros behind its last dimension up to `width`."""
    return F.pad(tensor, (0, width - tensor.shape[-1]))


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
