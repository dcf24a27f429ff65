"""Keys and values in 8 bits, symmetric, with one float16 scale per channel.

    q = round(x / s),  −127 ≤ q ≤ 127,   s = max |x| over the tokens / 127, rounded up to float16

A channel is one of a head's `width` numbers, over its m tokens. Outliers of keys are in few channels, and a scale per
channel keeps the error of all other channels small (Liu et al. 2024, "KIVI", §3). The error of each number is at most
s / 2, before the rounding to the tensor's own dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foreword.compression.forms import PLAIN, Form
from foreword.errors import CompressionError
from foreword.prefix.encoding import Encoded

STEPS = 127


def encode(tensor: Tensor) -> Encoded:
    """Return int8 `[heads, m, width]` and scale `[heads, 1, width]` of a floating tensor with at least one token.

    Raises `CompressionError` for numbers whose scale float16 can't hold.
    """
    wide = tensor.detach().double()
    exact = wide.abs().amax(1, keepdim=True) / STEPS
    scale = _rounded_up(exact)
    if not bool(torch.isfinite(scale).all()):
        raise CompressionError(f"int8: {float(wide.abs().max()):g} is too large for a float16 scale; store it plain")
    whole = torch.round(wide / scale.double().clamp(min=2.0**-24)).clamp(-STEPS, STEPS).to(torch.int8)
    return Encoded("int8", {"int8": whole, "scale": scale})


def _rounded_up(exact: Tensor) -> Tensor:
    """Return the smallest float16 that is not below `exact` (≥ 0). The bits of the next larger float16 are + 1."""
    nearest = exact.to(torch.float16)
    below = (nearest.double() < exact).to(torch.int16)
    return (nearest.view(torch.int16) + below).view(torch.float16)


class Int8:
    """Trains the tensor itself. Attention sees its int8 form, decoded.

    The gradient passes unchanged through the rounding (Bengio et al. 2013, "Estimating or Propagating Gradients Through
    Stochastic Neurons").
    """

    def start(self, tensor: Tensor) -> list[Tensor]:
        return [tensor]

    def value(self, trained: Sequence[Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        (tensor,) = trained
        rounded = encode(tensor).decode(shape, dtype).to(tensor.dtype)
        return tensor + (rounded - tensor).detach()

    def stored(self, trained: Sequence[Tensor], shape: torch.Size, dtype: torch.dtype) -> Encoded:
        return encode(trained[0])


def int8_form(tensor: Tensor) -> Form:
    """Return the int8 form; for a slot without tokens the plain form, since there is nothing to encode."""
    return Int8() if tensor.numel() else PLAIN
