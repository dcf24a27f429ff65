"""Shapes of an attention module's keys and values, read from the module and its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Heads and widths of one attention module, as its attention function gets them."""

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    sliding_window: int | None
    backend: str


def shape_of(module: Any, layer: int) -> Shape:
    """Return the shape of `module`, which is layer `layer` of its stack."""
    config: Any = getattr(module, "config", None)
    if getattr(config, "is_heterogeneous", False):
        config = config.per_layer_config[layer]
    heads = int(_first(module, "num_heads", "n_heads", "num_attention_heads") or config.num_attention_heads)
    backend = "math (softcap)" if getattr(module, "attn_logit_softcapping", None) is not None else "flash"
    window = _window(module, config, layer)
    if _latent(module):  # multi-head latent attention: a slot holds the expanded heads
        return Shape(heads, heads, module.qk_head_dim, module.v_head_dim, window, "flash (padded widths)")
    width = _first(module, "head_dim", "head_size", "attention_head_size", "key_value_proj_dim")
    width = int(width or _first(module, "hidden_size", "embed_dim") // heads)
    value_width = int(getattr(module, "v_head_dim", None) or width)
    backend = backend if value_width == width else "flash (padded widths)"
    return Shape(heads, _kv_heads(module, config, heads), width, value_width, window, backend)


def base_shape(config: Any) -> dict[str, Any]:
    """Return the facts of a model's configuration that must be equal for a prefix to fit, as `Fingerprint.shape`."""
    text = config.get_text_config()
    return {
        "model_type": config.model_type,
        "hidden_size": text.hidden_size,
        "num_layers": text.num_hidden_layers,
        "vocab_size": getattr(text, "vocab_size", None) or 0,  # models of pictures have none
    }


def caches_latents(model: Any) -> bool:
    """Return True if caches of `model` hold what keys and values are made of: multi-head latent attention."""
    return any(_latent(module) for module in model.modules())


def _latent(module: Any) -> bool:
    return hasattr(module, "kv_lora_rank")


def _kv_heads(module: Any, config: Any, heads: int) -> int:
    groups = getattr(module, "num_key_value_groups", None)
    if groups is not None:
        return heads // int(groups)
    if hasattr(module, "new_decoder_architecture"):  # Falcon repeats the heads of a group before it caches them
        return heads if module.new_decoder_architecture or not module.multi_query else 1
    return int(getattr(config, "num_key_value_heads", None) or heads)


def _window(module: Any, config: Any, layer: int) -> int | None:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and layer < len(kinds):
        return _window_of(kinds[layer], config)
    window: int | None = getattr(module, "sliding_window", None)
    if window is None:
        window = getattr(config, "sliding_window", None)
    return window


def _window_of(kind: str, config: Any) -> int | None:
    if kind == "chunked_attention":
        return int(config.attention_chunk_size)
    if kind != "sliding_attention":
        return None
    local = getattr(config, "local_attention", None)  # ModernBERT: half on each side
    return int(local if local is not None else config.sliding_window)


def _first(module: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(module, name, None)) is not None), None)
