"""Changing a prefix's position offset by rotating its keys (Su et al. 2021, RoFormer, eq. 14–16).

With rotary positions a score depends only on distance. If real tokens move from offset a to offset b, the
keys of the prefix must move by b − a too, so that all distances stay the same: each pair of key channels
is rotated by (b − a) times its frequency. Each layer has its own frequencies, layout and rotary width; a
layer without positions is not changed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from foreword.base.frozen import FrozenModel
from foreword.errors import PositionError
from foreword.models import rotary
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
    if architecture.rotary == "unknown":
        raise PositionError(
            f"how {base.name} pairs the channels of its rotary keys was not found when it was verified; "
            "a prefix keeps the offset it was trained with"
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


def rotated(key: Tensor, slot: str, delta: int, base: FrozenModel) -> Tensor:
    """Return `key` `[H_kv, m, d]` of `slot` with each channel pair rotated by delta · frequency."""
    radians = rotary.frequencies(base.model, base.model_slots, slot)
    return rotary.rotated(key, delta, radians, architecture_of(base.model).rotary)
