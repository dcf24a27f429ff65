"""Exact two-part attention: one softmax over the prefix, one over the tokens, then a merge of the two.

    O = α · Attn(Q, P_K, P_V) + (1 − α) · Attn(Q, K, V),   α = exp(lse_P − logaddexp(lse_P, lse_local))

This equals attention over the concatenation, because a softmax over two blocks is the mean of the
blocks' softmaxes weighted by their partition functions (the identity behind flash attention's
tiling, Dao et al. 2022, §3.1, and ring attention, Liu et al. 2023). The prefix part has no mask, at most T5's position
bias, and its keys are the same for each row. So the queries of all rows are folded into one axis, and the prefix is
never expanded. Rows with different prefixes are segments of that axis, sorted by prefix; see `segments`.

Backward: the flash backward of each part gets the *merged* output and log-sum-exp. From them it recomputes the
merged probabilities exp(s − lse), which gives the exact gradients. dQ is the sum of both parts.

An attention sink (gpt-oss) is a third part with value zero: it enters the log-sum-exp and scales the output.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from foreword.attention import decoding
from foreword.attention.backends import FLASH_CPU, Flash, Part, math_part
from foreword.attention.call import NEG_INF, AttentionCall
from foreword.attention.segments import Segments
from foreword.attention.sharing import Bias, Plan, Shared, put, take


def two_part_attention(
    call: AttentionCall, shared: Shared | None, flash: Flash | None, packed: Segments | None = None
) -> Tensor:
    """Return the attention output `[B, H, n, d_v]`. The rows in `shared` also see their prefix.

    flash: the backend that computes `call`; None: plain tensor operations.
    packed: the batch is one row of tokens, cut into these segments, which don't see each other. Each token then counts
    as a row in `shared`.
    """
    if shared is not None:
        place = call.query.device, call.query.dtype
        shared = shared._replace(key=shared.key.to(*place), value=shared.value.to(*place))
    if flash is None or (flash is not FLASH_CPU and shared is not None and shared.bias is not None):
        return _math(call, shared, packed)  # other kernels take no bias
    width, value_width = call.query.shape[-1], call.value.shape[-1]
    widest = -(-max(width, value_width) // flash.multiple) * flash.multiple
    if {width, value_width} != {widest}:  # kernels need one width; zeros change neither scores nor outputs
        call = replace(
            call, query=widen(call.query, widest), key=widen(call.key, widest), value=widen(call.value, widest)
        )
        if shared is not None:
            shared = shared._replace(key=widen(shared.key, widest), value=widen(shared.value, widest))
    plan, *kv, bias = (None, None, None, None) if shared is None else shared
    if torch.is_grad_enabled():
        output: Tensor = TwoPart.apply(  # type: ignore[no-untyped-call]
            call, flash, plan, packed, bias, call.query, call.key, call.value, call.sinks, *kv
        )
    elif shared is not None and packed is None and bias is None and decoding.fits(call, flash, shared.plan):
        output = decoding.attend(call, shared.plan.segments, shared.key, shared.value)
    else:
        output = _two_parts(call, flash, plan, packed, bias, *kv).output
    return output[..., :value_width]


def _two_parts(
    call: AttentionCall,
    flash: Flash,
    plan: Plan | None,
    packed: Segments | None,
    bias: Bias,
    pk: Tensor | None,
    pv: Tensor | None,
) -> Part:
    """Return the merged output `[B, H, n, d]` and log-sum-exp `[B, H, n]`."""
    query, key, value, sinks = call.query, call.key, call.value, call.sinks
    hidden, causal, scale = call.hidden, call.causal, call.scale
    if packed is None:
        part = flash.forward(query, key, value, call.mask, causal, scale)
    else:
        part = flash.forward_segments(query, key, value, packed, causal, scale)
    if sinks is not None:
        part, hidden = with_sinks(_with_hidden(part, hidden, None), sinks), None
    if plan is None or pk is None or pv is None:
        return part
    inputs = take(fold(query), plan.order), pk[None], pv[None]
    prefix = flash.forward_segments(*inputs, plan.segments, False, scale, bias)
    return _merged(part, prefix, plan.order, hidden)


class TwoPart(torch.autograd.Function):
    """The fast path: flash kernels for both parts, one fused backward."""

    @staticmethod
    def forward(
        ctx: Any,
        call: AttentionCall,
        flash: Flash,
        plan: Plan | None,
        packed: Segments | None,
        bias: Bias,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        pk: Tensor | None,
        pv: Tensor | None,
    ) -> Tensor:
        part = _two_parts(call, flash, plan, packed, bias, pk, pv)
        ctx.save_for_backward(query, key, value, call.mask, part.output, part.lse, sinks, pk, pv)
        ctx.settings = call.causal, call.scale, flash, plan, packed, bias
        return part.output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, output, lse, sinks, pk, pv = ctx.saved_tensors
        causal, scale, flash, plan, packed, bias = ctx.settings
        part = Part(output, lse)
        if packed is None:
            dq, dk, dv = flash.backward(grad, query, key, value, part, mask, causal, scale)
        else:
            dq, dk, dv = flash.backward_segments(grad, query, key, value, part, packed, causal, scale)
        dpk = dpv = None
        if pk is not None:
            order, segments = plan
            merged = Part(take(fold(output), order), take(fold_lse(lse), order))
            inputs = take(fold(grad), order), take(fold(query), order), pk[None], pv[None]
            dq_prefix, dpk, dpv = flash.backward_segments(*inputs, merged, segments, False, scale, bias)
            dq = _plus(dq, dq_prefix, order)
            dpk, dpv = dpk[0], dpv[0]
        dsinks = None if sinks is None or not ctx.needs_input_grad[8] else _sinks_gradient(grad, part, sinks)
        return (None, None, None, None, None, dq, dk, dv, dsinks, dpk, dpv)


def _math(call: AttentionCall, shared: Shared | None, packed: Segments | None) -> Tensor:
    """Compute `two_part_attention` in plain tensor operations, which autograd differentiates."""
    part = math_part(call, call.key, call.value, local=True) if packed is None else _math_segments(call, packed)
    if call.sinks is not None:
        part = with_sinks(part, call.sinks)
    if shared is None:
        return part.output
    order, segments = shared.plan
    prefix_call = replace(call, query=take(fold(call.query), order), key=shared.key[None], value=shared.value[None])
    prefix = _math_segments(prefix_call, segments, shared.bias, local=False)
    return _merged(part, prefix, order, None).output


def _math_segments(call: AttentionCall, segments: Segments, bias: Bias = None, local: bool = True) -> Part:
    biases = [None] * len(segments.queries) if bias is None else [one for run in bias for one in run]
    queries = torch.split(call.query, list(segments.queries), 2)
    pairs = zip(
        torch.split(call.key, list(segments.keys), 2), torch.split(call.value, list(segments.keys), 2), strict=True
    )
    parts = [
        math_part(replace(call, query=query), *pair, local=local, bias=one)
        for query, pair, one in zip(queries, pairs, biases, strict=True)
    ]
    return Part(torch.cat([part.output for part in parts], 2), torch.cat([part.lse for part in parts], 2))


def _merged(part: Part, prefix: Part, order: Tensor | None, hidden: Tensor | None) -> Part:
    """Return `part` `[B, H, n, d]` with `prefix` `[1, H, N, d]` merged into the queries `order`."""
    batch = part.output.shape[0]
    output, lse = fold(part.output), fold_lse(part.lse)
    local = Part(take(output, order), take(lse, order))
    if hidden is not None:
        heads, n = part.lse.shape[1:]
        local = _with_hidden(local, fold_lse(hidden.expand(batch, heads, n)), order)
    merged = merge(local, prefix)
    return unfold_part(Part(put(output, order, merged.output), put(lse, order, merged.lse)), batch)


def _plus(total: Tensor, change: Tensor, order: Tensor | None) -> Tensor:
    """Return `total` `[B, H, n, d]` plus `change` `[1, H, N, d]` at the queries `order`."""
    if order is None:
        return total + unfold(change, total.shape[0])
    flat = fold(total).transpose(1, 2).index_add(1, order, change.transpose(1, 2))
    return unfold(flat.transpose(1, 2), total.shape[0])


def merge(local: Part, prefix: Part) -> Part:
    """Merge two softmax parts over the same queries. `local.lse` may be −∞; `prefix.lse` must be finite."""
    lse = torch.logaddexp(local.lse, prefix.lse)
    alpha = torch.exp(prefix.lse - lse).unsqueeze(-1).to(local.output.dtype)
    return Part(torch.lerp(local.output, prefix.output, alpha), lse)


def with_sinks(part: Part, sinks: Tensor) -> Part:
    """Return `part` with one more key per head, of logit `sinks` `[H]` and value zero."""
    logits = sinks.to(part.lse).view(1, -1, 1)
    lse = torch.logaddexp(part.lse, logits)
    share = torch.exp(part.lse - lse).unsqueeze(-1).to(part.output.dtype)
    return Part(part.output * share, lse)


def _sinks_gradient(grad: Tensor, part: Part, sinks: Tensor) -> Tensor:
    """Return dL/d sinks `[H]`. Since the value of a sink is zero, it is −Σ p_sink · (dO · O)."""
    weight = torch.exp(sinks.to(part.lse).view(1, -1, 1) - part.lse)
    return -(weight * (grad * part.output).sum(-1)).sum((0, 2)).to(sinks.dtype)


def widen(tensor: Tensor, width: int) -> Tensor:
    """Fill the last dimension of `tensor` with zeros up to `width`."""
    return F.pad(tensor, (0, width - tensor.shape[-1]))


def fold(tensor: Tensor) -> Tensor:
    """`[B, H, n, d]` → `[1, H, B·n, d]`; no copy if the memory order is `[B, n, H, d]`."""
    batch, heads, n, width = tensor.shape
    return tensor.transpose(0, 1).reshape(1, heads, batch * n, width)


def fold_lse(lse: Tensor) -> Tensor:
    """`[B, H, n]` → `[1, H, B·n]` in the memory order that flash kernels write, `[B, n, H]`."""
    batch, heads, n = lse.shape
    return lse.transpose(1, 2).reshape(1, batch * n, heads).transpose(1, 2)


def unfold(tensor: Tensor, batch: int) -> Tensor:
    """The inverse of `fold`: `[1, H, B·n, d]` → `[B, H, n, d]`."""
    flat = tensor[0]  # [H, B·n, …]
    return flat.view(flat.shape[0], batch, -1, *flat.shape[2:]).transpose(0, 1)


def unfold_part(part: Part, batch: int) -> Part:
    """`unfold` both the output and the log-sum-exp `[1, H, B·n]`."""
    return Part(unfold(part.output, batch), unfold(part.lse, batch))


def pick(tensor: Tensor, index: Tensor | None) -> Tensor:
    """Return the rows `index` of `tensor`; None: every row."""
    return tensor if index is None else tensor.index_select(0, index)


def rows_of(tensor: Tensor, index: Tensor | None) -> int:
    """Return how many rows `pick` returns."""
    return int(tensor.shape[0] if index is None else index.shape[0])


def _with_hidden(local: Part, hidden: Tensor | None, order: Tensor | None) -> Part:
    """Set the lse of `hidden` queries to −∞. A flash kernel returns lse 0 for a query that sees no key."""
    if hidden is None:
        return local
    return Part(local.output, local.lse.masked_fill(take(hidden, order), NEG_INF))
