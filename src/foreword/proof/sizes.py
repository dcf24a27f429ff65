"""Small sizes: what a number in a configuration becomes, by the name of its field."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

VOCABULARY = 128
TOKENS = 96  # ids from here on are special
WINDOW = 16
SHORT = 8  # what a number that is not known by name is cut to: a length from which on something else is computed
POSITIONS = 256
WIDTH, HEADS = 64, 4
MIXED = 16  # width of a recurrent part's heads

Siblings = Mapping[str, Any]  # the fields beside it
Rule = Callable[[str, int, Siblings, int], int]  # (name, value, siblings, width of a head) → the small value
_HEAD_COUNTS = ("num_attention_heads", "n_head", "n_heads", "num_heads")


def _most(limit: int) -> Rule:
    return lambda name, value, siblings, head: min(value, limit)


def _fixed(size: int) -> Rule:
    return lambda name, value, siblings, head: size


def _same(name: str, value: int, siblings: Siblings, head: int) -> int:
    return value


def _token(name: str, value: int, siblings: Siblings, head: int) -> int:
    return value if value < 3 else TOKENS + value % (VOCABULARY - TOKENS)


def _key_heads(name: str, value: int, siblings: Siblings, head: int) -> int:
    """As many as query heads, one, or half as many: as in the real model."""
    queries = next((siblings[count] for count in _HEAD_COUNTS if isinstance(siblings.get(count), int)), None)
    return min(value, HEADS if value == queries else 1 if value == 1 else 2)


def _head(name: str, value: int, siblings: Siblings, head: int) -> int:
    rotated = siblings.get("qk_rope_head_dim")  # multi-head latent attention: the rotary part's width
    return min(value, 8 if rotated == value else head)


def _value_head(name: str, value: int, siblings: Siblings, head: int) -> int:
    return min(value, 12 if "qk_nope_head_dim" in siblings or siblings.get("head_dim") != value else head)


def _wide(name: str, value: int, siblings: Siblings, head: int) -> int:
    """Attention that is wider than the hidden states (Zamba2), in the same proportion."""
    real, hidden = (siblings.get(field) for field in ("attention_hidden_size", "hidden_size"))
    wide = WIDTH * real // hidden if isinstance(real, int) and isinstance(hidden, int) and hidden else WIDTH
    return wide if name == "attention_hidden_size" else wide // HEADS


def _mixer(name: str, value: int, siblings: Siblings, head: int) -> int:
    """A size of a recurrent or convolutional part."""
    expand = next((siblings[field] for field in ("mamba_expand", "expand") if isinstance(siblings.get(field), int)), 0)
    if expand and re.search(r"n_heads|num_heads|n_mamba_heads", name) and "mamba_d_ssm" not in siblings:
        return int(expand * WIDTH // MIXED)
    if re.search(r"kernel|conv.*width|d_conv|expand|n_groups|cache|step", name):
        return value
    if "chunk" in name:
        return min(value, WINDOW)
    if re.search(r"n_heads|num_heads|num_value_heads|mamba_heads", name):
        return min(value, HEADS)
    if "num_key_heads" in name:
        return min(value, 2)
    if re.search(r"d_state|state_size|state_dim|head_?dim|d_head|dt_rank", name):
        return min(value, MIXED)
    return min(value, WIDTH)


# The first whose pattern is the whole name counts
_RULES: list[tuple[re.Pattern[str], Rule]] = [
    (re.compile(pattern), rule)
    for pattern, rule in [
        (r".*_token_(id|index)|.*_token_ids", _token),
        (r".*vocab_size.*|.*vocabulary_size", _most(VOCABULARY)),
        (r"max_window_layers|.*layers_to_.*", _same),
        (r"num_global_key_value_heads", _fixed(1)),
        (r".*(kv|key_value|group_query)_heads?.*|multi_query_group_num", _key_heads),
        (r"(linear|mamba|ssm|lru|conv)_.*|n_mamba_heads", _mixer),
        (r"(?!.*(image|vision|audio)).*(attention|attn|encoder|decoder|num|n|swa|index|global)_heads?|num_heads",
         _most(HEADS)),
        (r"global_head_dim", _fixed(32)),
        (r"(num|n|moe)_.*experts|.*_experts|moe_num_experts|zero_expert_num", _most(4)),
        (r"(num_)?n?_?shared_experts?|n_group|topk_group|num_expert_groups?|.*_group", _most(1)),
        (r".*(experts?_per_tok|top_k|topk|moe_k|experts_used|active_experts).*", _most(2)),
        (r"first_k_dense_replace|num_dense_layers|.*num_dense.*|first_dense.*", _most(1)),
        (r".*(window|chunk)(_size|_len|_length|s)?|local_attention|attention_window.*|sliding_.*", _fixed(WINDOW)),
        (r"original_max_position_embeddings", _most(SHORT)),
        (r"(?!.*type)(max_.*positions?.*|n_positions|n_ctx|max_seq_len.*|seq_length|max_sequence_length)",
         _most(POSITIONS)),
        (r".*num_buckets", _most(8)),
        (r".*max_distance", _most(WINDOW)),
        (r"q_lora_rank", _most(24)),
        (r"qk_nope_head_dim", _most(16)),
        (r".*rope_head_dim", _most(8)),
        (r"(swa_)?v_head_dim", _value_head),
        (r"attention_hidden_size|attention_head_dim", _wide),
        (r".*head_dim|attention_key_size|kv_channels|d_kv|attention_head_size|head_size|size_per_head", _head),
        (r".*rank.*", _most(16)),
        (r"n_embd|d_model|(en|de)?(coder_)?hidden_size|dim|embed_dim|emb_dim|hidden_dim|word_embed_proj_dim"
         r"|.*embedding_size|backbone_hidden_size|(.*_)?width", _most(WIDTH)),
        (r"(moe|expert).*(intermediate|ffn|hidden).*", _most(32)),
        (r".*(intermediate|ffn|inner|d_ff|mlp|feed_?forward).*", _most(96)),
        (r"hidden_size_per_layer_input", _most(8)),
        (r"image_size", _fixed(32)),
        (r"patch_size", _fixed(8)),
        (r"num_mel_bins|feature_size|input_dim", _most(8)),
        (r"max_source_positions", _most(32)),
        (r".*(_period|_interval|_step|_every.*|_freq.*|_pattern)", _most(3)),
        (r".*_offset", _most(1)),
    ]
]  # fmt: skip


def small_number(name: str, value: Any, siblings: Siblings, head: int) -> Any:
    """Return the small value of the field `name`; `value` itself unless it is a positive integer.

    siblings: the real fields beside it. head: the width of a small head.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return value
    rule = next((rule for pattern, rule in _RULES if pattern.fullmatch(name)), None)
    if rule is not None:
        return rule(name, value, siblings, head)
    wide = re.search(r"dim|size|width|channel|embed|hidden", name)
    return value if value <= 32 else min(value, WIDTH) if wide else SHORT
