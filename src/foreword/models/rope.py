"""Changing a prefix's position offset by rotating its keys (Su et al. 2021, RoFormer, eq. 14–16).

With rotary positions a score depends on distance alone. Moving real tokens from offset a to offset b
keeps every distance to the prefix if the prefix's keys move by b − a too, that is, if each pair of key
channels is rotated by (b − a) times its frequency. Each layer has its own frequencies, layout and
rotary width; a layer without positions is left as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foreword.errors import PositionError
from foreword.models.architectures import architecture_of
from foreword.prefix import KV, Prefix

if TYPE_CHECKING:
    from foreword.models.base import Base

# Frequencies that don't depend on the sequence's length
_STATIC = ("default", "linear", "llama3", "yarn", "proportional")


def with_offset(prefix: Prefix, offset: int, base: Base) -> Prefix:
    """`prefix` with its keys rotated so that it does at `offset` what it did at its own.

    Exact up to rounding. Raises `PositionError` where positions are not rotary, where frequencies
    depend on length (dynamic, longrope), or where queries are scaled by position (Llama4).
    """
    base.require_fit(prefix)
    if offset < 0:
        raise PositionError(f"an offset must be 0 or more, not {offset}")
    if offset == prefix.position_offset:
        return prefix
    modules = {slot.name: base.model.get_submodule(slot.module) for slot in base.slots}
    _require_rotary(base, list(modules.values()))
    delta = offset - prefix.position_offset
    slots = {
        name: KV(_rotated(kv.key, _frequencies(base, modules[name], name), delta, base), kv.value)
        for name, kv in prefix.slots.items()
    }
    return replace(prefix, slots=slots, position_offset=offset)


def _require_rotary(base: Base, modules: list[Any]) -> None:
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
                f"{base.name} scales its rotary frequencies by length ({kind}); a prefix keeps the offset it was trained with"
            )
    if any(getattr(module, "attn_temperature_tuning", False) for module in modules):
        raise PositionError(
            f"{base.name} scales queries by position (attn_temperature_tuning); a prefix keeps the offset it was trained with"
        )


def _rope_types(config: Any) -> list[str]:
    """The scaling of every kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return [str(entry.get("rope_type", "default")) for entry in nested or [parameters]]


def _frequencies(base: Base, module: Any, slot: str) -> Tensor | None:
    """Radians per position of each channel pair, float64 `[rotary width / 2]`; None for a layer without positions."""
    if not getattr(module, "use_rope", True):
        return None
    if type(module).__name__ == "Cohere2Attention" and module.sliding_window is None:
        return None
    if (width := getattr(module, "pos_embd_dim", None)) is not None:  # GPT-J, CodeGen: a table, base 10000
        return torch.pow(10000.0, -torch.arange(0, width, 2, dtype=torch.float64) / width)
    stack = base.model.get_submodule(base.model_slots.stacks[0].path)  # a vision tower may have its own
    rotary = next((part for name, part in stack.named_modules() if name.endswith("rotary_emb")), None)
    found = getattr(rotary, "inv_freq", None)
    if found is None:  # a set of frequencies per kind of layer
        kinds = base.model.config.get_text_config().layer_types
        found = getattr(rotary, f"{kinds[int(slot.partition('.')[2])]}_inv_freq", None)
    if found is None:
        return None
    frequencies: Tensor = found.detach().double().cpu()
    return frequencies


def _rotated(key: Tensor, frequencies: Tensor | None, delta: int, base: Base) -> Tensor:
    """`key` `[H_kv, m, d]` with each channel pair turned by delta · frequency."""
    if frequencies is None:
        return key
    architecture = architecture_of(base.model)
    width = 2 * len(frequencies)
    first = key.shape[-1] - width if architecture.rotary == "last half" else 0
    turned = key[..., first : first + width].double()
    if architecture.rotary == "interleaved":
        one, two = turned[..., ::2], turned[..., 1::2]
    else:
        one, two = turned.chunk(2, dim=-1)
    angle = (delta * frequencies).to(key.device)
    pair = one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()
    joined = torch.stack(pair, -1).flatten(-2) if architecture.rotary == "interleaved" else torch.cat(pair, -1)
    return torch.cat([key[..., :first], joined.to(key.dtype), key[..., first + width :]], dim=-1)
