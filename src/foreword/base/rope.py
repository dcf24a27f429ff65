"""Changing a prefix's position offset by rotating its keys (Su et al. 2021, RoFormer, eq. 14–16).

With rotary positions a score depends only on distance. If real tokens move from offset a to offset b, the
keys of the prefix must move by b − a too, so that all distances stay the same: each pair of key channels
is rotated by (b − a) times its frequency. Each layer has its own frequencies, layout and rotary width; a
layer without positions is not changed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foreword.base.frozen import FrozenModel
from foreword.errors import PositionError
from foreword.models.architectures import architecture_of

# Kinds of frequencies that don't depend on the sequence's length
_STATIC = ("default", "linear", "llama3", "yarn", "proportional")


def require_rotary(base: FrozenModel) -> None:
    """Raise `PositionError` if a prefix's offset can't be changed by rotating its keys."""
    modules = [base.model.get_submodule(slot.module) for slot in base.slots]
    architecture = architecture_of(base.model)
    if architecture.positions == "none":
        return
    config = base.model.config.get_text_config()
    if architecture.rotary is None or getattr(config, "alibi", False):
        raise PositionError(
            f"{base.name} has {architecture.positions} positions; a prefix's offset can be changed for rotary ones only"
        )
    for kind in _rope_types(config):
        if kind not in _STATIC:
            raise PositionError(
                f"{base.name} scales its rotary frequencies by length ({kind}); "
                "a prefix keeps the offset it was trained with"
            )
    if any(getattr(module, "attn_temperature_tuning", False) for module in modules):
        raise PositionError(
            f"{base.name} scales queries by position (attn_temperature_tuning); "
            "a prefix keeps the offset it was trained with"
        )


def _rope_types(config: Any) -> list[str]:
    """Return the kind of frequency scaling of every kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return [str(entry.get("rope_type", "default")) for entry in nested or [parameters]]


def _frequencies(base: FrozenModel, slot: str) -> Tensor | None:
    """Return the radians per position of each channel pair, float64 `[rotary width / 2]`; None without positions."""
    module: Any = base.model.get_submodule(next(entry.module for entry in base.slots if entry.name == slot))
    if not getattr(module, "use_rope", True):
        return None
    if type(module).__name__ == "Cohere2Attention" and module.sliding_window is None:
        return None
    if (width := getattr(module, "pos_embd_dim", None)) is not None:  # GPT-J, CodeGen: a table, base 10000
        return torch.pow(10000.0, -torch.arange(0, width, 2, dtype=torch.float64) / width)
    stack = base.model.get_submodule(base.model_slots.stacks[0].path)  # not in a vision tower, which may have its own
    rotary = next((child for name, child in stack.named_modules() if name.endswith("rotary_emb")), None)
    inverse = getattr(rotary, "inv_freq", None)
    if inverse is None:  # a set of frequencies per kind of layer
        kinds = base.model.config.get_text_config().layer_types
        inverse = getattr(rotary, f"{kinds[int(slot.partition('.')[2])]}_inv_freq", None)
    if inverse is None:
        return None
    frequencies: Tensor = inverse.detach().double().cpu()
    return frequencies


def rotated(key: Tensor, slot: str, delta: int, base: FrozenModel) -> Tensor:
    """Return `key` `[H_kv, m, d]` of `slot` with each channel pair rotated by delta · frequency."""
    frequencies = _frequencies(base, slot)
    if frequencies is None:
        return key
    architecture = architecture_of(base.model)
    width = 2 * len(frequencies)
    first = key.shape[-1] - width if architecture.rotary == "last half" else 0
    channels = key[..., first : first + width].double()
    if architecture.rotary == "interleaved":
        x, y = channels[..., ::2], channels[..., 1::2]
    else:
        x, y = channels.chunk(2, dim=-1)
    angle = (delta * frequencies).to(key.device)
    pair = x * angle.cos() - y * angle.sin(), y * angle.cos() + x * angle.sin()
    joined = torch.stack(pair, -1).flatten(-2) if architecture.rotary == "interleaved" else torch.cat(pair, -1)
    return torch.cat([key[..., :first], joined.to(key.dtype), key[..., first + width :]], dim=-1)
