"""Cross entropy of a frozen output layer, chunk by chunk, so that not all logits are in memory at once.

The probabilities of a chunk overwrite its logits. So memory is one chunk's `[c, vocab]` for any number of targets. The
forward pass also computes the gradient of each token's hidden state, (softmax(z) − onehot(target)) · W. The backward
pass multiplies it by the incoming gradient of the token's loss (the idea of Liger Kernel's fused linear cross entropy,
Hsu et al. 2024, §3.2; here per token and for a frozen W).
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_HALF = (torch.bfloat16, torch.float16)  # dtypes for which cut-cross-entropy has a backward
NUMBERS = 2**23  # logits in a chunk; 32 MB in float32


def head_losses(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    """Return the cross entropy in nats of each target, `[T]`, float32 or wider. hidden `[T, width]`, targets `[T]`.

    head: a linear layer for which `plain` returns True.
    """
    weight, bias = head.weight, getattr(head, "bias", None)
    if hidden.device.type == "cuda" and bias is None and hidden.dtype == weight.dtype in _HALF and _has_cce():
        from cut_cross_entropy import linear_cross_entropy

        # its default drops small gradients
        losses: Tensor = linear_cross_entropy(hidden, weight, targets, reduction="none", filter_eps=None)
        return losses
    losses = _HeadLoss.apply(hidden, weight, bias, targets)  # type: ignore[no-untyped-call]
    return losses


def reference_losses(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    """Return what `head_losses` returns, computed from all logits at once."""
    logits = head(hidden)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, targets, reduction="none")


def plain(head: Any) -> bool:
    """Return True if `head` is a linear layer with ordinary frozen weights, which can be used chunk by chunk."""
    tensors = [tensor for tensor in (getattr(head, "weight", None), getattr(head, "bias", None)) if tensor is not None]
    ordinary = all(type(tensor) in (Tensor, nn.Parameter) and tensor.device.type != "meta" for tensor in tensors)
    frozen = not any(tensor.requires_grad for tensor in tensors)
    return type(head) is nn.Linear and ordinary and frozen


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        if torch.is_autocast_enabled(hidden.device.type):  # cast once, not for each chunk
            weight = weight.to(torch.get_autocast_dtype(hidden.device.type))
        losses = hidden.new_empty(len(targets), dtype=wide)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        chunk = max(16, NUMBERS // weight.shape[0])
        for start in range(0, len(targets), chunk):
            states, expected = hidden[start : start + chunk], targets[start : start + chunk, None]
            logits = F.linear(states, weight, bias).to(wide)
            highest = logits.amax(1, keepdim=True)
            losses[start : start + chunk] = (highest - logits.gather(1, expected))[:, 0]
            total = logits.sub_(highest).exp_().sum(1, keepdim=True)
            losses[start : start + chunk] += total[:, 0].log()
            if gradient is not None:
                logits.div_(total).scatter_add_(1, expected, -torch.ones_like(total))
                gradient[start : start + chunk] = logits.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * above.unsqueeze(1).to(gradient.dtype), None, None, None


def _has_cce() -> bool:
    return importlib.util.find_spec("cut_cross_entropy") is not None
