"""Heads: layers on a frozen base's hidden states that are trained together with the prefix."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foreword.base import Base


class LinearHead(nn.Module):
    """logits = W · norm(states) + b: `[…, hidden]` → `[…, classes]`, float32 or the base's wider dtype.

    norm: layer normalisation without parameters. With it one learning rate suits bases whose states differ in scale by
    orders of magnitude. W `[classes, hidden]` starts with small random numbers, b with zeros.
    """

    def __init__(self, hidden: int, classes: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(classes, hidden, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(classes, dtype=dtype))

    def forward(self, states: Tensor) -> Tensor:
        wide = states.to(self.weight.dtype)
        with torch.autocast(wide.device.type, enabled=False):
            return F.linear(F.layer_norm(wide, wide.shape[-1:]), self.weight, self.bias)


def head_for(base: Base, classes: int) -> LinearHead:
    """Make a head on `base`'s hidden states, on its device."""
    config = base.model.config
    text = config.get_text_config()
    width = getattr(text, "word_embed_proj_dim", None) or text.hidden_size  # OPT-350m projects its last states
    hidden = int(config.d_model if config.is_encoder_decoder else width)
    return LinearHead(hidden, classes, torch.promote_types(base.dtype, torch.float32)).to(base.device)
