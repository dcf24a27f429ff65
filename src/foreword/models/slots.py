"""Attention slots: the places of a model that can take a prefix, with their shapes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from foreword.errors import UnsupportedModelError
from foreword.models.architectures import ARCHITECTURES, Architecture, Route, architecture_of, part_of
from foreword.models.shapes import Shape, shape_of
from foreword.models.stacks import Stack, make_stack, stack_of

_CROSS = {"encoder_attn", "EncDecAttention", "crossattention", "cross_attn", "cross_attention", "encoder_attention"}
_CACHE_LIMITS = (
    "the prefix is copied for every row and step",
    "no activation checkpointing",
    "no static cache",
    "every layer takes a prefix, all of one length",
)


@dataclass(frozen=True)
class Slot:
    """One attention layer that takes a prefix.

    module: its path in the model. backend: the attention backend that computes it on CPU, and why.
    name: `decoder.i`, `encoder.i` or `cross.i`, with i the number of its layer.
    sliding_window: tokens visible to a query (ModernBERT: on both sides together; Llama4: the chunk),
    or None for full attention. The prefix is always visible.
    """

    name: str
    module: str
    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    sliding_window: int | None
    backend: str

    @property
    def role(self) -> str:
        """decoder, encoder or cross."""
        return self.name.partition(".")[0]

    def parameters(self, length: int) -> int:
        """num_kv_heads · length · (key_dim + value_dim)."""
        return self.num_kv_heads * length * (self.key_dim + self.value_dim)


@dataclass(frozen=True)
class ModelSlots:
    """slots: in layer order, `encoder.*` before `decoder.*` before `cross.*`.

    readers: attention module path → the slots it reads, in the order of its calls. That is one slot, except in ALBERT.
    Layers that share the keys and values of an earlier layer read its slot.
    stacks: where positions are shifted. route: see `Architecture`. limits: what the route can't do.
    without: numbers of the layers that have no attention and take no prefix.
    default_offset: True if by default a prefix raises the positions of real tokens by its length.
    explicit_positions: True if the stacks take position_ids (ALiBi models count from mask and cache instead).
    counts_mask: see `Architecture`. packs: True if rows can be packed one after another, because only attention and
    positions connect a token with other tokens.
    """

    slots: tuple[Slot, ...]
    readers: Mapping[str, tuple[str, ...]]
    stacks: tuple[Stack, ...]
    route: Route
    limits: tuple[str, ...]
    without: tuple[int, ...]
    default_offset: bool
    explicit_positions: bool
    counts_mask: bool
    packs: bool

    @property
    def packing_limit(self) -> int:
        """The longest row that can be packed; 0 if none can. Rows longer than a sliding window would need a mask."""
        windows = [slot.sliding_window for slot in self.slots if slot.sliding_window is not None]
        return min(windows, default=2**31) if self.packs else 0

    @property
    def shifts(self) -> bool:
        """True if a prefix can have a position offset other than 0. An encoder–decoder's last stack is its decoder."""
        return self.stacks[-1].shift is not None

    @property
    def biased(self) -> bool:
        """True if an offset acts on the prefix's keys in the decoder's own attention, and on nothing else (T5)."""
        return self.stacks[-1].shift == "bias"

    @property
    def position_limit(self) -> int | None:
        """The number of positions in the smallest learned table, or None."""
        return min((stack.position_limit for stack in self.stacks if stack.position_limit is not None), default=None)


def find_slots(model: nn.Module, architecture: Architecture | None = None) -> ModelSlots:
    """Return the slots of a Transformers model, in layer order.

    architecture: None: the table's, or what a proof has found.
    Works on a model with meta tensors. Raises `UnsupportedModelError`, which names the obstacle.
    """
    architecture = architecture or architecture_of(model)
    config: Any = model.config
    if architecture.kind == "encoder" and getattr(part_of(config), "is_decoder", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} runs as a decoder (is_decoder); it takes a prefix as an encoder only"
        )
    modules = _attention_modules(model, architecture)
    slots, readers = _per_call(modules, model) if architecture.per_call else _per_module(modules, architecture)
    names = [slot.name for slot in slots]
    if len(set(names)) < len(names):
        raise UnsupportedModelError(
            f"{type(model).__name__} has several towers of {architecture.attention}; attach to one of them"
        )
    paths = {path: None for slot in slots for path in (stack_of(slot.module, model),)}
    stacks = tuple(make_stack(path, model, architecture) for path in paths)
    text = part_of(config).get_text_config()
    cached = architecture.route == "cache"
    return ModelSlots(
        tuple(sorted(slots, key=lambda slot: ("encoder", "decoder", "cross").index(slot.role))),
        readers,
        stacks,
        architecture.route,
        _CACHE_LIMITS if cached else (),
        _without(slots, architecture, text),
        architecture.kind == "decoder" and all(stack.shift for stack in stacks),
        architecture.positions != "alibi" and not getattr(text, "alibi", False),
        architecture.counts_mask,
        _packs(model, architecture),
    )


def _attention_modules(model: nn.Module, architecture: Architecture) -> list[tuple[str, Any]]:
    """Return (path, module) of every attention module. Raises `UnsupportedModelError`."""
    modules = [
        (path, module)
        for path, module in model.named_modules()
        if type(module).__name__ in architecture.classes
        and not (architecture.verified and architecture.kind == "decoder" and _CROSS & set(path.split(".")))
    ]
    if not modules:
        raise UnsupportedModelError(f"{type(model).__name__} has no module of class {architecture.attention}")
    _require_dispatch(modules[0][1], architecture)
    for path, module in modules:
        if architecture.kind != "encoder-decoder" and getattr(module, "is_cross_attention", False):
            raise UnsupportedModelError(
                f"{path} ({architecture.attention}) is a cross attention, which takes no prefix in this architecture"
            )
    return modules


def _packs(model: Any, architecture: Architecture) -> bool:
    """Return True if rows of `model` can be packed; see `ModelSlots.packs`."""
    shifted = architecture.kind == "decoder" and architecture.positions in ("rotary", "learned")
    by_index = any(getattr(module, "attn_temperature_tuning", False) for module in model.modules())  # Llama4
    text_only = model.config.get_text_config() is model.config
    alone = not architecture.recurrent and not by_index
    return architecture.packs and shifted and text_only and architecture.route == "attention" and alone


def embedding_width(model: Any) -> int:
    """Return the width of the input embeddings. Without a table of them (pictures, sound) it is the hidden size."""
    width = getattr(model.get_input_embeddings(), "embedding_dim", None)
    return int(width or model.config.get_text_config().hidden_size)


def _require_dispatch(module: nn.Module, architecture: Architecture) -> None:
    """Raise `UnsupportedModelError` if this version of Transformers doesn't dispatch the attention of `module`.

    Older versions don't dispatch every architecture. A prefix would silently have no effect there.
    """
    home = sys.modules[type(module).__module__]
    if architecture.route == "attention" and not hasattr(home, "ALL_ATTENTION_FUNCTIONS"):
        raise UnsupportedModelError(
            f"{type(module).__name__} has attention code of its own in this version of Transformers; "
            "update Transformers"
        )


def _per_module(
    modules: list[tuple[str, Any]], architecture: Architecture
) -> tuple[list[Slot], dict[str, tuple[str, ...]]]:
    """Return (slots, readers) with one slot per module.

    A layer that shares the keys and values of an earlier layer (Gemma4) has no slot and reads that of the earlier one.
    """
    slots: list[Slot] = []
    readers: dict[str, tuple[str, ...]] = {}
    owners: dict[Any, str] = {}
    for path, module in modules:
        name = f"{_role(path, architecture)}.{_layer_number(path)}"
        kind = getattr(module, "layer_type", None)
        if getattr(module, "is_kv_shared_layer", False):
            name = owners[kind]
        else:
            owners[kind] = name
            slots.append(_slot(name, path, module, architecture))
        readers[path] = (name,)
    return slots, readers


def _per_call(modules: list[tuple[str, Any]], model: Any) -> tuple[list[Slot], dict[str, tuple[str, ...]]]:
    """Return (slots, readers) of an ALBERT. Layer i runs group ⌊i · groups / layers⌋: a few modules in turn."""
    config = model.config
    inner = len(modules) // config.num_hidden_groups
    slots: list[Slot] = []
    readers: dict[str, tuple[str, ...]] = {}
    for layer in range(config.num_hidden_layers):
        group = int(layer / (config.num_hidden_layers / config.num_hidden_groups))
        for number in range(inner):
            path, module = modules[group * inner + number]
            name = f"encoder.{layer * inner + number}"
            slots.append(_slot(name, path, module, ARCHITECTURES["albert"]))
            readers[path] = (*readers.get(path, ()), name)
    return slots, readers


def _slot(name: str, path: str, module: Any, architecture: Architecture) -> Slot:
    shape: Shape = shape_of(module, int(name.partition(".")[2]))
    backend = "own attention, over past_key_values" if architecture.route == "cache" else shape.backend
    return Slot(name, path, shape.heads, shape.kv_heads, shape.key_dim, shape.value_dim, shape.sliding_window, backend)


def _role(path: str, architecture: Architecture) -> str:
    if architecture.kind != "encoder-decoder":
        return architecture.kind
    parts = path.split(".")
    if _CROSS & set(parts):
        return "cross"
    return "encoder" if "encoder" in parts else "decoder"


def _layer_number(path: str) -> int:
    return next(int(name) for name in path.split(".") if name.isdigit())


def _without(slots: list[Slot], architecture: Architecture, config: Any) -> tuple[int, ...]:
    """Return the numbers of a decoder's layers that have no slot and share no other layer's."""
    if architecture.kind != "decoder":
        return ()
    shared = getattr(config, "num_kv_shared_layers", 0) or 0
    numbers = {_layer_number(slot.module) for slot in slots}
    return tuple(layer for layer in range(config.num_hidden_layers - shared) if layer not in numbers)
