"""Tiny models as GGUF files for llama.cpp, converted as llama.cpp's own `convert_hf_to_gguf.py` does.

Only what the tests compare is here: the names and layouts of the weights, and the numbers that llama.cpp reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foreword.export.llamacpp import LAYOUTS
from tiny import byte_tokenizer

PERMUTED = ("llama", "mistral", "granite", "smollm3")
PLUS_ONE = ("gemma", "gemma2", "gemma3_text")  # their norms multiply by 1 + weight; llama.cpp's by the weight
KINDS = (
    "llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "granite", "starcoder2", "stablelm", "smollm3", "gemma",
    "gemma2", "gemma3_text", "cohere2", "gpt_neox", "gpt2",
)  # fmt: skip
# Changes of the tiny models: the pattern of windows that llama.cpp has built in, tied embeddings where it wants them
CHANGES: dict[str, dict[str, Any]] = {
    "gemma": {"tie_word_embeddings": True},
    "gemma2": {"tie_word_embeddings": True, "query_pre_attn_scalar": 16},
    "gemma3_text": {
        "tie_word_embeddings": True, "query_pre_attn_scalar": 16, "num_hidden_layers": 6,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    },
    "cohere2": {
        "tie_word_embeddings": True, "num_hidden_layers": 4,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    },
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]},
}  # fmt: skip


def write_gguf(model: Any, path: Path) -> None:
    """Write a tiny model of one of `KINDS`."""
    import gguf

    config, kind = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, LAYOUTS[kind].name)
    _numbers(writer, config, kind)
    _vocabulary(writer, config)
    architecture = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == LAYOUTS[kind].name)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        found = names.get_name(name, (".weight", ".bias"))
        assert found is not None, f"{kind} has no name for {name}"
        writer.add_tensor(found, _converted(name, tensor, config, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _converted(name: str, tensor: Tensor, config: Any, kind: str) -> np.ndarray:
    heads = config.num_attention_heads
    if kind in PERMUTED and "q_proj" in name:
        tensor = _permuted(tensor, heads)
    if kind in PERMUTED and "k_proj" in name:
        tensor = _permuted(tensor, config.num_key_value_heads)
    if kind in PLUS_ONE and "norm" in name:
        tensor = tensor + 1
    if kind == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        tensor = tensor.T
    if kind == "gpt_neox" and "query_key_value" in name:  # head by head; llama.cpp wants all queries, then all keys
        width = config.hidden_size // heads
        tensor = tensor.reshape(heads, 3, width, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)
    return np.ascontiguousarray(tensor.detach().to(torch.float32).numpy())


def _permuted(tensor: Tensor, heads: int) -> Tensor:
    """As in `LlamaModel.permute` of llama.cpp's converter."""
    return (
        tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
    )


def _numbers(writer: Any, config: Any, kind: str) -> None:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = dict(getattr(config, "rope_parameters", None) or {})
    nested = {name: entry for name, entry in rope.items() if isinstance(entry, dict)}
    rope = nested.get("full_attention", rope)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(96)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_file_type(0)
    if rope:
        writer.add_rope_dimension_count(int(width * rope.get("partial_rotary_factor", 1.0)))
        writer.add_rope_freq_base(rope["rope_theta"])
    if nested:
        writer.add_rope_freq_base_swa(nested["sliding_attention"]["rope_theta"])
    for name in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"):
        if (epsilon := getattr(config, name, None)) is not None:
            (writer.add_layer_norm_rms_eps if name.startswith("rms") else writer.add_layer_norm_eps)(epsilon)
    if LAYOUTS[kind].windows is not None:
        writer.add_sliding_window(config.sliding_window)
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if kind == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if kind == "cohere2":
        writer.add_logit_scale(config.logit_scale)
    if kind in ("gpt_neox", "stablelm"):
        writer.add_parallel_residual(getattr(config, "use_parallel_residual", False))


def _vocabulary(writer: Any, config: Any) -> None:
    """The byte tokenizer. Its one merge makes no token."""
    tokens = dict(sorted((index, token) for token, index in byte_tokenizer().get_vocab().items()))
    names = [tokens.get(index, f"<{index}>") for index in range(config.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(names)
    writer.add_token_types([1] * 256 + [3] * (config.vocab_size - 256))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_vocab_size(config.vocab_size)
