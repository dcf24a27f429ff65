"""Kernels that return attention output *and* log-sum-exp. The merge needs both.

    flash-cpu    aten's CPU flash attention, forward and backward; float and half types, masks, GQA
    flash-cuda   aten's CUDA flash attention; bfloat16/float16, causal or unmasked
    math         plain tensor operations; everything else: softcap, dropout, a learned bias, any device

`choose` returns the backend for a call. `merge.TwoPart` calls the forward and backward of the flash backends.
Autograd differentiates `math`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from foreword.attention.call import NEG_INF, AttentionCall, causal_mask
from foreword.attention.segments import Segments, as_batch, concatenated, from_batch

aten = torch.ops.aten
FEW = 16  # on CPU, heads that share keys are computed together if each has at most this many queries (decoding)
_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_CUDA_DTYPES = (torch.bfloat16, torch.float16)


class Part(NamedTuple):
    """Output `[B, H, n, d]` and log-sum-exp `[B, H, n]` (float32 or wider) of one softmax."""

    output: Tensor
    lse: Tensor


Forward = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool, float], Part]
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Part, Tensor | None, bool, float], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Varlen:
    """A kernel over segments; every tensor is `[1, H, N, d]`.

    forward(q, k, v, segments, causal, scale); backward(grad, q, k, v, merged part, segments, causal, scale).
    """

    forward: Callable[[Tensor, Tensor, Tensor, Segments, bool, float], Part]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Part, Segments, bool, float], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Flash:
    """A flash attention kernel.

    forward(q, k, v, mask, causal, scale); backward(grad, q, k, v, merged part, mask, causal, scale).
    multiple: head widths must be a multiple of it; other widths are filled up with zeros.
    varlen: the same kernel over segments; None if it can't take segments.
    """

    name: str
    forward: Forward
    backward: Backward
    multiple: int = 1
    varlen: Varlen | None = None

    def forward_segments(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        segments: Segments,
        causal: bool,
        scale: float,
        masks: Sequence[Tensor] | None = None,
    ) -> Part:
        """Return output `[1, H, N, d]` and log-sum-exp `[1, H, N]`.

        query: `[1, H, N, d]`. key, value: `[1, H_kv, M, d]`.
        masks: an additive mask for each run of `segments`, `[segments of the run, H, queries, keys]`; no varlen kernel
        takes them.
        """
        if self.varlen is not None:
            return self.varlen.forward(query, key, value, segments, causal, scale)
        parts = [
            self.forward(
                as_batch(query, count, queries),
                as_batch(key, count, keys),
                as_batch(value, count, keys),
                mask,
                causal,
                scale,
            )
            for (count, queries, keys), mask in _with_masks(segments, masks)
        ]
        outputs, lses = [from_batch(part.output) for part in parts], [from_batch(part.lse) for part in parts]
        return Part(concatenated(outputs), concatenated(lses))

    def backward_segments(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        part: Part,
        segments: Segments,
        causal: bool,
        scale: float,
        masks: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of query, key and value, in their shapes. part: merged output and log-sum-exp."""
        if self.varlen is not None:
            return self.varlen.backward(grad, query, key, value, part, segments, causal, scale)
        gradients = []
        for (count, queries, keys), mask in _with_masks(segments, masks):
            merged = Part(as_batch(part.output, count, queries), as_batch(part.lse, count, queries))
            inputs = (as_batch(grad, count, queries), as_batch(query, count, queries))
            keys_values = (as_batch(key, count, keys), as_batch(value, count, keys))
            run_gradients = self.backward(*inputs, *keys_values, merged, mask, causal, scale)
            gradients.append([from_batch(gradient) for gradient in run_gradients])
        dq, dk, dv = ([run_gradients[index] for run_gradients in gradients] for index in range(3))
        return concatenated(dq), concatenated(dk), concatenated(dv)


def _with_masks(
    segments: Segments, masks: Sequence[Tensor] | None
) -> Iterator[tuple[tuple[int, slice, slice], Tensor | None]]:
    for index, run in enumerate(segments.runs):
        yield run, None if masks is None else masks[index]


def _cpu_forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Part:
    same_for_all = mask is None or (mask.shape[1] == 1 and q.shape[2] == 1)
    if q.shape[1] > k.shape[1] and q.shape[2] <= FEW and same_for_all and not causal:
        return _grouped(q, k, v, mask, scale)
    return Part(*aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=mask, scale=scale))


def sharing_keys(q: Tensor, mask: Tensor | None, shared: int) -> tuple[Tensor, Tensor | None]:
    """Return `q` and `mask` with the heads that share keys as further queries of one head.

    q: `[B, H, n, d]` → `[B, shared, (H / shared)·n, d]`; a view if n = 1. shared: number of heads of keys.
    mask: `[B, 1, 1, t]` or None; must be None if n > 1.
    The products are fewer and larger, and the kernel reads each key once.
    """
    batch, heads, n, width = q.shape
    groups = heads // shared
    grouped = q.reshape(batch, shared, groups * n, width)
    return grouped, None if mask is None else mask.expand(-1, -1, groups, -1)


def _grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Part:
    batch, heads, n, _ = q.shape
    grouped, grouped_mask = sharing_keys(q, mask, k.shape[1])
    part = _cpu_forward(grouped, k, v, grouped_mask, False, scale)
    return Part(part.output.reshape(batch, heads, n, -1), part.lse.reshape(batch, heads, n))


def _cpu_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, part: Part, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, part.output, part.lse, 0.0, causal, attn_mask=mask, scale=scale
    )
    return dq, dk, dv


def _cuda_forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Part:
    k, v = _repeat_heads(k, q), _repeat_heads(v, q)
    results = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
    return Part(results[0], results[1])


def _cuda_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, part: Part, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    heads = k.shape[1]
    k, v = _repeat_heads(k, q), _repeat_heads(v, q)
    seed = torch.zeros(2, dtype=torch.uint64, device=q.device)  # dropout state; unused at dropout 0
    offset = torch.zeros((), dtype=torch.uint64, device=q.device)
    dq, dk, dv = aten._scaled_dot_product_flash_attention_backward(
        grad, q, k, v, part.output, part.lse.contiguous(), None, None, q.shape[2], k.shape[2], 0.0, causal,
        seed, offset, scale=scale,
    )  # fmt: skip
    return dq, _sum_heads(dk, heads), _sum_heads(dv, heads)


def _varlen_forward(q: Tensor, k: Tensor, v: Tensor, segments: Segments, causal: bool, scale: float) -> Part:
    flat = (tensor[0].transpose(0, 1) for tensor in (q, k, v))  # [N, H, d]
    results = aten._flash_attention_forward(
        *flat, *segments.varlen_arguments(q.device), 0.0, causal, False, scale=scale
    )
    return Part(results[0].transpose(0, 1).unsqueeze(0), results[1].unsqueeze(0))  # lse is [H, N]


def _varlen_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, part: Part, segments: Segments, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    grad, q, k, v, output = (tensor[0].transpose(0, 1) for tensor in (grad, q, k, v, part.output))
    seed = torch.zeros(2, dtype=torch.uint64, device=q.device)  # dropout state; unused at dropout 0
    offset = torch.zeros((), dtype=torch.uint64, device=q.device)
    dq, dk, dv = aten._flash_attention_backward(
        grad,
        q,
        k,
        v,
        output,
        part.lse[0].contiguous(),
        *segments.varlen_arguments(q.device),
        0.0,
        causal,
        seed,
        offset,
        scale=scale,
    )
    return dq.transpose(0, 1)[None], dk.transpose(0, 1)[None], dv.transpose(0, 1)[None]


FLASH_CPU = Flash("flash-cpu", _cpu_forward, _cpu_backward)
FLASH_CUDA = Flash(
    "flash-cuda", _cuda_forward, _cuda_backward, multiple=8, varlen=Varlen(_varlen_forward, _varlen_backward)
)


def choose(call: AttentionCall) -> Flash | None:
    """Return the flash backend that computes `call` exactly, or None for `math`."""
    if call.softcap is not None or call.dropout > 0:
        return None
    if call.mask is not None and call.mask.grad_fn is not None:
        return None  # no kernel gives the gradient of a position bias
    if call.query.device.type == "cpu" and call.query.dtype in _CPU_DTYPES:
        return FLASH_CPU
    if call.query.device.type == "cuda" and call.query.dtype in _CUDA_DTYPES and call.mask is None:
        narrow = max(call.query.shape[-1], call.value.shape[-1]) <= 256
        recent = torch.cuda.get_device_capability(call.query.device) >= (8, 0)  # Ampere
        return FLASH_CUDA if narrow and recent else None
    return None


def math_part(call: AttentionCall, key: Tensor, value: Tensor, *, local: bool, bias: Tensor | None = None) -> Part:
    """Compute one part in plain tensor operations.

    local: True applies the mask, the hidden queries and the causality of `call`; False applies none of them.
    bias: added to the scores, `[H, n, m]`; None: nothing is.
    """
    groups = call.query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (call.query @ key.transpose(-1, -2)) * call.scale
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    scores = scores.float() if scores.dtype.itemsize < 4 else scores
    if local and call.causal:
        scores = scores + causal_mask(scores.shape[-1], scores)
    if local and call.mask is not None:
        scores = scores + call.mask.to(scores.dtype)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    hidden = call.hidden.unsqueeze(-1) if local and call.hidden is not None else None
    if hidden is not None:
        scores = scores.masked_fill(hidden, 0.0)  # keeps softmax and its gradient finite
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.unsqueeze(-1))
    if hidden is not None:
        lse = lse.masked_fill(hidden.squeeze(-1), NEG_INF)
        weights = weights.masked_fill(hidden, 0.0)
    weights = F.dropout(weights.to(value.dtype), call.dropout, training=call.dropout > 0)
    return Part(weights @ value, lse)


def _repeat_heads(tensor: Tensor, query: Tensor) -> Tensor:
    groups = query.shape[1] // tensor.shape[1]
    return tensor if groups == 1 else tensor.repeat_interleave(groups, 1)


def _sum_heads(grad: Tensor, heads: int) -> Tensor:
    batch, repeated, length, width = grad.shape
    if repeated == heads:
        return grad
    return grad.view(batch, heads, repeated // heads, length, width).sum(2)
