"""A configuration made small: the same family and kinds of layers, with few layers, narrow widths and few experts.

Names of fields tell what a number is. What decides how attention works is kept in kind: which layers have windows, how
keys are grouped, rotary settings, multi-head latent attention, position tables. Numbers that are not known by name
stay as they are; if they are large, the model can't be built small, and there is no proof.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

VOCABULARY = 128
TOKENS = 96  # ids from here on are special
WINDOW = 16
POSITIONS = 256
WIDTH, HEADS = 64, 4
MOST_LAYERS = 8

_DROPPED = {
    "transformers_version", "architectures", "dtype", "torch_dtype", "quantization_config", "id2label", "label2id",
    "_name_or_path", "name_or_path", "model_type", "auto_map", "problem_type",
}  # fmt: skip
_LAYERS = re.compile(
    r"num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|num_(en|de)coder_layers|(en|de)coder_num_hidden_layers"
    r"|num_(en|de)coder_blocks|depth|num_hidden_groups"
)
_PER_LAYER = re.compile(r"layers?_|_layers?|block_types|_per_layer|indices")  # lists of one entry per layer
# (name, value); the first that matches the whole name counts. A function gets the real value
_RULES: list[tuple[re.Pattern[str], Any]] = [
    (re.compile(pattern), rule)
    for pattern, rule in [
        (r".*_token_(id|index)|.*_token_ids", "token"),
        (r".*vocab_size.*|unpadded_vocab_size|.*vocabulary_size", lambda value: min(value, VOCABULARY)),
        (r"max_window_layers|.*layers_to_.*", lambda value: value),
        (r"num_global_key_value_heads", lambda value: 1),
        (r".*(kv|key_value|group_query)_heads?.*|multi_query_group_num", "kv"),
        (r"(linear|mamba|ssm|lru|conv)_.*|n_mamba_heads", "mixer"),
        (r"(?!.*(image|vision|audio)).*(attention|attn|encoder|decoder|num|n|swa|index|global)_heads?|n_head|num_heads",
         lambda value: min(value, HEADS)),
        (r"global_head_dim", lambda value: 32),
        (r"(num|n|moe)_.*experts|.*_experts|moe_num_experts|zero_expert_num", lambda value: min(value, 4)),
        (r"(num_)?n?_?shared_experts?|n_group|topk_group|num_expert_groups?|.*_group", lambda value: min(value, 1)),
        (r".*(experts?_per_tok|top_k|topk|moe_k|experts_used|active_experts).*", lambda value: min(value, 2)),
        (r"first_k_dense_replace|num_dense_layers|.*num_dense.*|first_dense.*", lambda value: min(value, 1)),
        (r".*(window|chunk)(_size|_len|_length|s)?|local_attention|keep_window_size|attention_window.*|sliding_.*",
         lambda value: WINDOW),
        (r"original_max_position_embeddings", lambda value: min(value, POSITIONS // 4)),
        (r"(?!.*type)(max_.*positions?.*|n_positions|n_ctx|max_seq_len.*|seq_length|max_sequence_length)",
         lambda value: min(value, POSITIONS)),
        (r"q_lora_rank", lambda value: min(value, 24)),
        (r"qk_nope_head_dim", lambda value: min(value, 16)),
        (r"qk_rope_head_dim|.*rope_head_dim", lambda value: min(value, 8)),
        (r"(swa_)?v_head_dim", "value"),
        (r"attention_hidden_size|attention_head_dim", "wide"),
        (r".*head_dim|attention_key_size|kv_channels|d_kv|attention_head_size|head_size|size_per_head|index_head_dim",
         "head"),
        (r".*rank.*|low_rank.*", lambda value: min(value, 16)),
        (r"n_embd|d_model|hidden_size|dim|embed_dim|emb_dim|hidden_dim|encoder_hidden_size|decoder_hidden_size"
         r"|word_embed_proj_dim|.*embedding_size|backbone_hidden_size|.*_width|width",
         lambda value: min(value, WIDTH)),
        (r"(moe|expert).*(intermediate|ffn|hidden).*", lambda value: min(value, 32)),
        (r".*(intermediate|ffn|inner|d_ff|mlp|feed_forward|feedforward).*(size|dim|hidden|inner|d_ff)?",
         lambda value: 96 if value > 96 else value),
        (r"hidden_size_per_layer_input", lambda value: min(value, 8)),
        (r"image_size", lambda value: 32),
        (r"patch_size", lambda value: 8),
        (r"num_mel_bins|feature_size|input_dim", lambda value: min(value, 8)),
        (r"max_source_positions", lambda value: min(value, 32)),
        (r".*(_period|_interval|_step|_every.*|_freq.*|_pattern)", lambda value: min(value, 3)),
        (r".*_offset", lambda value: min(value, 1)),
    ]
]  # fmt: skip


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
    count = max(value for name, value in values.items() if _is_layers(name, value))
    lists = [value for value in values.values() if isinstance(value, list) and len(value) == count and count > 1]
    special = {int(layer): entry for layer, entry in (values.get("per_layer_config") or {}).items()}
    owners = count - int(values.get("num_kv_shared_layers") or 0)
    kinds = [
        repr([entries[layer] for entries in lists if not _numbered(entries)] + [special.get(layer), layer < owners])
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


def _numbered(entries: list[Any]) -> bool:
    return len({repr(entry) for entry in entries}) == len(entries) > 3


def _head_width(values: Mapping[str, Any]) -> int:
    """Return 16, or 24 where the heads' widths don't add up to the hidden size: then the tiny ones don't either."""
    heads, width, hidden = (values.get(name) for name in ("num_attention_heads", "head_dim", "hidden_size"))
    whole = all(isinstance(number, int) and number > 0 for number in (heads, width, hidden))
    return 24 if whole and heads * width != hidden else WIDTH // HEADS  # type: ignore[operator]


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
            small[name] = _number(name, value, values, head)
    return small


def _list(name: str, value: list[Any], layers: list[int], real_layers: int, head: int) -> list[Any]:
    if len(value) == real_layers and real_layers > len(layers):
        return [_number(name, value[layer], {}, head) for layer in layers]
    if value and all(isinstance(entry, int) and not isinstance(entry, bool) for entry in value) and "layer" in name:
        kept = [layers.index(entry) for entry in value if entry in layers]  # numbers of layers
        return kept or value[:0]
    return [_number(name, entry, {}, head) for entry in value]


def _number(name: str, value: Any, siblings: Mapping[str, Any], head: int) -> Any:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return value
    rule = next((rule for pattern, rule in _RULES if pattern.fullmatch(name)), None)
    if rule is None:
        return value
    if rule == "token":
        return value if value < 3 else TOKENS + value % (VOCABULARY - TOKENS)
    if rule == "kv":
        heads = next((siblings[key] for key in ("num_attention_heads", "n_head", "n_heads", "num_heads")
                      if isinstance(siblings.get(key), int)), None)  # fmt: skip
        return min(value, HEADS if value == heads else 1 if value == 1 else 2)
    if rule == "head":
        rotated = siblings.get("qk_rope_head_dim")  # multi-head latent attention: the rotary part's width
        return min(value, 8 if rotated == value else head)
    if rule == "wide":  # attention wider than the hidden states
        wide = WIDTH * siblings.get("attention_hidden_size", 0) // siblings.get("hidden_size", 1) or WIDTH
        return wide if name == "attention_hidden_size" else wide // HEADS
    if rule == "value":
        return min(value, 12 if "qk_nope_head_dim" in siblings or siblings.get("head_dim") != value else head)
    if rule == "mixer":
        return _mixer(name, value, siblings)
    return rule(value)


def _mixer(name: str, value: int, siblings: Mapping[str, Any]) -> int:
    """Return a small size of a recurrent or convolutional part."""
    expand = next((siblings[key] for key in ("mamba_expand", "expand") if isinstance(siblings.get(key), int)), None)
    if expand and re.search(r"n_heads|num_heads", name) and "d_ssm" not in " ".join(siblings):
        return int(expand * WIDTH // 16)  # heads of 16 that make up the expanded width
    if re.search(r"kernel|conv.*width|d_conv|expand|n_groups|cache|step", name):
        return value
    if re.search(r"chunk", name):
        return min(value, WINDOW)
    if re.search(r"n_heads|num_heads|num_value_heads", name):
        return HEADS if "value" in name or "mamba" in name else min(value, HEADS)
    if re.search(r"num_key_heads", name):
        return min(value, 2)
    if re.search(r"d_state|state_size|state_dim|head_?dim|d_head|dt_rank", name):
        return min(value, 16)
    return min(value, WIDTH)


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
            small[name] = _number(name, value, {}, head)
    return small


def _sections(value: list[int], pairs: int) -> list[int]:
    """Return sections in the same proportions that add up to `pairs`."""
    scaled = [max(1, math.floor(size * pairs / sum(value))) for size in value]
    return [pairs - sum(scaled[1:]), *scaled[1:]]
