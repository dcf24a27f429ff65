"""Rotary positions (Su et al. 2021, RoFormer, eq. 14–16): the frequencies of a slot, and keys at another position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foreword.models.architectures import Rotary
from foreword.models.slots import ModelSlots


def frequencies(model: Any, slots: ModelSlots, slot: str) -> Tensor | None:
    """Return the radians per position of each channel pair, float64 `[rotary width / 2]`; None without positions."""
    module: Any = model.get_submodule(next(entry.module for entry in slots.slots if entry.name == slot))
    if not getattr(module, "use_rope", True):
        return None
    if type(module).__name__ == "Cohere2Attention" and module.sliding_window is None:
        return None
    if (width := getattr(module, "pos_embd_dim", None)) is not None:  # GPT-J, CodeGen: a table, base 10000
        return torch.pow(10000.0, -torch.arange(0, width, 2, dtype=torch.float64) / width)
    stack = model.get_submodule(slots.stacks[0].path)  # not in a vision tower, which may have its own
    rotary = next((child for name, child in stack.named_modules() if name.endswith("rotary_emb")), None)
    inverse = getattr(rotary, "inv_freq", None)
    if inverse is None:  # a set of frequencies per kind of layer
        kinds = getattr(model.config.get_text_config(), "layer_types", None)
        inverse = kinds and getattr(rotary, f"{kinds[int(slot.partition('.')[2])]}_inv_freq", None)
    return inverse.detach().double().cpu() if isinstance(inverse, Tensor) else None


def rotated(key: Tensor, delta: int, radians: Tensor | None, layout: Rotary | None) -> Tensor:
    """Return `key` `[H_kv, m, d]` with each channel pair rotated by delta · radians. None: the key as it is."""
    if radians is None:
        return key
    width = 2 * len(radians)
    first = key.shape[-1] - width if layout == "last half" else 0
    channels = key[..., first : first + width].double()
    if layout == "interleaved":
        x, y = channels[..., ::2], channels[..., 1::2]
    else:
        x, y = channels.chunk(2, dim=-1)
    angle = (delta * radians).to(key.device)
    pair = x * angle.cos() - y * angle.sin(), y * angle.cos() + x * angle.sin()
    joined = torch.stack(pair, -1).flatten(-2) if layout == "interleaved" else torch.cat(pair, -1)
    return torch.cat([key[..., :first], joined.to(key.dtype), key[..., first + width :]], dim=-1)
