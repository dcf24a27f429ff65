"""Attention slots: the places of a model that can take a prefix, with their shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from foreword.errors import UnsupportedModelError
from foreword.models.architectures import ARCHITECTURES


@dataclass(frozen=True)
class Slot:
    """One attention layer. module: its path in the model. backend: what serves it on CPU, and why.

    sliding_window: tokens visible to a query, or None for full attention; the prefix is always visible.
    """

    name: str
    module: str
    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    sliding_window: int | None
    backend: str

    def parameters(self, length: int) -> int:
        """num_kv_heads · length · (key_dim + value_dim)."""
        return self.num_kv_heads * length * (self.key_dim + self.value_dim)


@dataclass(frozen=True)
class ModelSlots:
    """stack: path of the module that takes position_ids and runs the layers.

    position_limit: number of positions in a learned table, None for rotary positions.
    """

    slots: tuple[Slot, ...]
    stack: str
    position_limit: int | None


def find_slots(model: nn.Module) -> ModelSlots:
    """The slots of a Transformers causal language model, in layer order.

    Works on a model with meta tensors. Raises `UnsupportedModelError` naming what stands in the way.
    """
    config: Any = model.config
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} (model_type {config.model_type!r}, attention {_first_attention(model)}) "
            f"takes no prefix yet; supported: {', '.join(sorted(ARCHITECTURES))}"
        )
    found = [
        (path, module) for path, module in model.named_modules() if type(module).__name__ == architecture.attention
    ]
    if not found:
        raise UnsupportedModelError(f"{type(model).__name__} has no module of class {architecture.attention}")
    for path, module in found:
        if getattr(module, "is_cross_attention", False):
            raise UnsupportedModelError(
                f"{path} ({architecture.attention}) is a cross attention; it takes no prefix yet"
            )
    slots = tuple(_slot(index, path, module, config) for index, (path, module) in enumerate(found))
    limit = config.max_position_embeddings if architecture.positions == "learned" else None
    return ModelSlots(slots, _stack_of(found[0][0]), limit)


def _slot(index: int, path: str, module: Any, config: Any) -> Slot:
    heads = config.num_attention_heads
    width = getattr(module, "head_dim", None) or getattr(module, "head_size", None) or config.hidden_size // heads
    window = _window(index, module, config)
    capped = getattr(module, "attn_logit_softcapping", None) is not None
    return Slot(
        name=f"decoder.{index}",
        module=path,
        num_heads=heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        key_dim=width,
        value_dim=width,
        sliding_window=window,
        backend="math (softcap)" if capped else "flash",
    )


def _window(index: int, module: Any, config: Any) -> int | None:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and index < len(kinds):
        return config.sliding_window if kinds[index] == "sliding_attention" else None
    own = getattr(module, "sliding_window", None)
    window: int | None = own if own is not None else getattr(config, "sliding_window", None)
    return window


def _stack_of(path: str) -> str:
    """`model.layers.0.self_attn` → `model`."""
    parts = path.split(".")
    first_number = next(index for index, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: first_number - 1])


def _first_attention(model: nn.Module) -> str:
    for path, module in model.named_modules():
        if "attention" in type(module).__name__.lower():
            return f"{type(module).__name__} at {path}"
    return "none found"
