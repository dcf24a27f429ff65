"""The stacks of a model: the modules that take tokens or features and run layers, and how their positions move."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from foreword.errors import UnsupportedModelError
from foreword.models.architectures import Architecture

Shift = Literal["arguments", "table", "bias"]

_ENTRY = {"input_ids", "inputs_embeds", "input_features", "pixel_values"}
TABLE = "embed_positions"  # a stack's learned table of positions
_BUCKETS = "_relative_position_bucket"  # of an attention module with a relative position bias


@dataclass(frozen=True)
class Stack:
    """A module that takes the tokens (or features) and runs layers.

    shift: how a prefix's offset raises the positions of real tokens. "arguments": by position_ids. "table": in the
    call of its table, because the stack takes no position_ids (BART). "bias": positions act by a bias on scores
    alone, which the keys of a prefix with an offset get too (T5). None: it can't.
    position_limit: number of positions in a learned table; None without one.
    """

    path: str
    shift: Shift | None
    position_limit: int | None


def stack_of(path: str, model: nn.Module) -> str:
    """Return the nearest module above `path` that takes tokens or features: `model.layers.0.self_attn` → `model`.

    Raises `UnsupportedModelError` if there is none.
    """
    parts = path.split(".")
    for size in range(len(parts) - 1, -1, -1):
        parent = ".".join(parts[:size])
        if _ENTRY & set(inspect.signature(model.get_submodule(parent).forward).parameters):
            return parent
    raise UnsupportedModelError(f"{type(model).__name__} has no module above {path} that takes tokens")


def make_stack(path: str, model: nn.Module, architecture: Architecture) -> Stack:
    """Return the stack at `path` of `model`."""
    module = model.get_submodule(path)
    both = architecture.kind == "encoder-decoder"
    shift = _decoder_shift(path, module, architecture) if both else _shift(module, architecture)
    return Stack(path, shift, _limit(module, model, architecture))


def bias_of(stack: nn.Module) -> Any:
    """Return the attention module of a T5 decoder that has the table of the relative bias; its layers share it."""
    return next(module for module in stack.modules() if getattr(module, "has_relative_attention_bias", False))


def _shift(module: nn.Module, architecture: Architecture) -> Shift | None:
    alibi = architecture.positions == "alibi"  # counts positions from the mask, which the cache route extends
    return "arguments" if (_takes_positions(module) or alibi) and not architecture.after_padding else None


def _decoder_shift(path: str, module: nn.Module, architecture: Architecture) -> Shift | None:
    """Return the shift of an encoder–decoder's stack: None for encoders, Whisper, and what is outside the table."""
    if architecture.verified or "encoder" in path.split(".") or _takes_positions(module):
        return None
    if architecture.positions == "relative":
        return "bias" if any(hasattr(part, _BUCKETS) for part in module.modules()) else None
    table = getattr(module, TABLE, None)
    return "table" if table is not None and _takes_positions(table) else None


def _takes_positions(module: nn.Module) -> bool:
    return "position_ids" in inspect.signature(module.forward).parameters


def _limit(module: Any, model: Any, architecture: Architecture) -> int | None:
    """Return the number of usable positions in the stack's table; None without a table."""
    has_table = architecture.positions == "learned" or architecture.limit != "max_position_embeddings"
    if not has_table or "input_features" in inspect.signature(module.forward).parameters:
        return None
    config = getattr(module, "config", model.config).get_text_config()
    reserved = int(config.pad_token_id or 0) + 1 if architecture.after_padding else 0
    limit = getattr(config, architecture.limit, None)
    return None if limit is None else int(limit) - reserved
