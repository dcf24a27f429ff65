"""A configuration made small: the same family and kinds of layers, with few layers, narrow widths and few experts.

Names of fields tell what a number is. What decides how attention works is kept in kind: which layers have windows, how
keys are grouped, rotary settings, multi-head latent attention, position tables. Large numbers that are not known by
name become small too: a length from which on a model computes something else must be reached in the proof. If the
parts then don't fit together, there is no proof.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from foreword.proof.sizes import HEADS, WIDTH, small_number

MOST_LAYERS, MOST_REAL_LAYERS = 8, 4096

_DROPPED = {
    "transformers_version", "architectures", "dtype", "torch_dtype", "quantization_config", "id2label", "label2id",
    "_name_or_path", "name_or_path", "model_type", "auto_map", "problem_type", "out_features", "out_indices",
    "stage_names",
}  # fmt: skip
_LAYERS = re.compile(
    r"num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|num_(en|de)coder_layers|(en|de)coder_num_hidden_layers"
    r"|num_(en|de)coder_blocks|depth|num_hidden_groups"
)


def shrunk(config: Any) -> dict[str, Any]:
    """Return the fields of a small configuration of the class of `config`."""
    return _part(config.to_dict(), [])


def _part(values: Mapping[str, Any], layers: list[int]) -> dict[str, Any]:
    """Return small values of one configuration or part of one. layers: those kept, if `values` doesn't say."""
    counts = [value for name, value in values.items() if _is_layers(name, value)]
    return _small(values, layers_of(values) if counts else layers, max(counts, default=0), _head_width(values))


def layers_of(values: Mapping[str, Any]) -> list[int]:
    """Return the numbers of the layers to keep, in order: the first of each kind, and some again.

    A layer's kind is its entry in every list with one entry per layer. Layers that share the keys of earlier ones are
    of other kinds. If nothing tells the kinds apart, the first layers are kept.
    """
    count = min(max(value for name, value in values.items() if _is_layers(name, value)), MOST_REAL_LAYERS)
    lists = [value for value in values.values() if isinstance(value, list) and len(value) == count and count > 1]
    chosen = [value for name, value in values.items() if _chooses(name, value)]
    special = {int(layer): entry for layer, entry in (values.get("per_layer_config") or {}).items()}
    owners = count - int(values.get("num_kv_shared_layers") or 0)
    kinds = [
        repr(
            [entries[layer] for entries in lists if not _numbered(entries)]
            + [special.get(layer), layer < owners]
            + [layer in numbers for numbers in chosen]
        )
        for layer in range(count)
    ]
    first: dict[str, int] = {}
    for layer, kind in enumerate(kinds):
        first.setdefault(kind, layer)
    kept = sorted(first.values())[:MOST_LAYERS]
    again = [layer for layer in range(owners) if layer not in kept]
    return sorted(kept + again[: max(0, 3 - len(kept))])


def _is_layers(name: str, value: Any) -> bool:
    return _LAYERS.fullmatch(name) is not None and isinstance(value, int) and not isinstance(value, bool)


def _chooses(name: str, value: Any) -> bool:
    """Return True if `value` is a list of the numbers of layers."""
    numbers = isinstance(value, list) and all(isinstance(entry, int) and not isinstance(entry, bool) for entry in value)
    return numbers and "layer" in name


def _numbered(entries: list[Any]) -> bool:
    return len({repr(entry) for entry in entries}) == len(entries) > 3


def _head_width(values: Mapping[str, Any]) -> int:
    """Return 16, or 24 where the heads' widths don't add up to the hidden size: then the tiny ones don't either."""
    heads, width, hidden = (values.get(name) for name in ("num_attention_heads", "head_dim", "hidden_size"))
    if not (isinstance(heads, int) and isinstance(width, int) and isinstance(hidden, int)):
        return WIDTH // HEADS
    return WIDTH // HEADS if heads * width == hidden else 24


def _small(values: Mapping[str, Any], layers: list[int], real_layers: int, head: int) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for name, value in values.items():
        if name in _DROPPED:
            continue
        if _is_layers(name, value):
            small[name] = min(value, len(layers))
        elif name == "num_kv_shared_layers" and value:
            small[name] = sum(layer >= real_layers - value for layer in layers)
        elif name == "per_layer_config" and value:
            entries = {int(layer): entry for layer, entry in value.items()}
            small[name] = {
                place: _small(entries[layer], layers, 0, head) for place, layer in enumerate(layers) if layer in entries
            }
        elif isinstance(value, dict):
            small[name] = _rotary(value, head) if "rope" in name else _part(value, layers)
        elif isinstance(value, list):
            small[name] = _list(name, value, layers, real_layers, head)
        else:
            small[name] = small_number(name, value, values, head)
    return small


def _list(name: str, value: list[Any], layers: list[int], real_layers: int, head: int) -> list[Any]:
    if len(value) == real_layers and real_layers > len(layers):
        return [small_number(name, value[layer], {}, head) for layer in layers]
    if _chooses(name, value):
        return [layers.index(entry) for entry in value if entry in layers]
    return [small_number(name, entry, {}, head) for entry in value]


def _rotary(values: Mapping[str, Any], head: int) -> dict[str, Any]:
    """Return rotary settings for heads `head` wide. Lists of factors per channel pair are cut to fit."""
    small: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            small[name] = _rotary(value, head)
        elif isinstance(value, list) and "section" in name:
            small[name] = _sections(value, head // 2)
        elif isinstance(value, list):
            small[name] = value[: max(1, int(head * float(values.get("partial_rotary_factor") or 1.0)) // 2)]
        else:
            small[name] = small_number(name, value, {}, head)
    return small


def _sections(value: list[int], pairs: int) -> list[int]:
    """Return sections in the same proportions that add up to `pairs`."""
    scaled = [max(1, math.floor(size * pairs / sum(value))) for size in value]
    return [pairs - sum(scaled[1:]), *scaled[1:]]
