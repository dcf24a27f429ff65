"""Tiny random models of every supported architecture, with weights scaled up, and a byte tokenizer.

At standard initialisation a tiny model's logits hardly depend on positions or context, so errors hide;
scaled up they show.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from foreword.base import Base
from foreword.prefix import KV, Prefix

VOCAB = 260
BOS, EOS, PAD = 256, 257, 258
SCALE = 10.0
_GENTLER = {"t5": 3.0}  # it doesn't divide scores by √d, so that 10 leaves float32 no digits

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
    "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "tie_word_embeddings": False,
}  # fmt: skip
_SIDES = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "decoder_start_token_id": EOS,
    "forced_eos_token_id": None,
}  # fmt: skip
# Per architecture: what differs
_SPECIAL: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"layer_types": ["full_attention"] * 3},
    "qwen3": {"layer_types": ["full_attention"] * 3},
    "mistral": {"sliding_window": None},
    "mixtral": {"sliding_window": None, "num_local_experts": 4, "num_experts_per_tok": 2},
    "phi3": {"sliding_window": None, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "gpt2": {"n_inner": 96},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64, "do_layer_norm_before": True},
    "gpt_neox": {"rotary_pct": 0.5},
    "starcoder2": {"sliding_window": None},
    "stablelm": {"partial_rotary_factor": 0.5},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "olmo2": {},
    "granite": {"attention_multiplier": 0.3, "logits_scaling": 2.0},
    "cohere2": {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gemma2": {
        "sliding_window": 64, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 20.0,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gemma3_text": {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gemma4_text": {  # the last two layers share keys and values; full layers have other heads and widths
        "num_hidden_layers": 4, "global_head_dim": 32, "num_kv_shared_layers": 2,
        "num_global_key_value_heads": 1, "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB, "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "deepseek_v3": {  # keys 24 wide, values 12; head_dim is the rotary part's
        "num_key_value_heads": 4, "head_dim": 8, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16, "v_head_dim": 12, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
        "topk_group": 1, "moe_intermediate_size": 32, "first_k_dense_replace": 1, "n_shared_experts": 1,
    },
    "llama4_text": {
        "num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 96, "attention_chunk_size": 64,
        "no_rope_layers": [1, 0, 1], "interleave_moe_layer_step": 2,
        "layer_types": ["chunked_attention", "full_attention", "chunked_attention"],
    },
    "gpt_oss": {
        "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "qwen3_next": {
        "num_hidden_layers": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "jamba": {
        "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2,
        "num_experts_per_tok": 1, "mamba_d_state": 8, "mamba_dt_rank": 4,
    },
    "falcon_h1": {
        "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16,
    },
    "lfm2": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "bert": {},
    "roberta": {"pad_token_id": 2},
    "electra": {"embedding_size": 64},
    "distilbert": {"dim": 64, "hidden_dim": 96, "n_layers": 3, "n_heads": 4},
    "albert": {"embedding_size": 32, "num_hidden_layers": 4, "num_hidden_groups": 2},
    "modernbert": {
        "local_attention": 64, "global_attn_every_n_layers": 2, "cls_token_id": BOS, "sep_token_id": EOS,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    "t5": {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 4,
           "decoder_start_token_id": PAD},
    "bart": _SIDES,
    "mbart": _SIDES,
    "whisper": {
        **_SIDES, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 128,
        "decoder_start_token_id": BOS, "suppress_tokens": None, "begin_suppress_tokens": None,
    },
    "vit": {"image_size": 32, "patch_size": 8},
    "clip_vision_model": {"image_size": 32, "patch_size": 8},
    "clip_text_model": {},
    "bloom": {"n_layer": 3, "n_head": 4},
    "falcon": {"multi_query": True, "alibi": False},
    "mpt": {"d_model": 64, "n_layers": 3, "n_heads": 4, "max_seq_len": 256, "expansion_ratio": 2},
    "gptj": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256, "rotary_dim": 8},
    "codegen": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256, "n_ctx": 256, "rotary_dim": 8},
}  # fmt: skip
# What a config calls differently, or would not take
_OTHER_NAMES = {"gpt2": {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
                         "max_position_embeddings": "n_positions"}}  # fmt: skip
_ONE_HEAD_COUNT = ("gpt2", "opt", "gpt_neox", "bert", "roberta", "electra", "albert", "modernbert", "clip_text_model",
                   "vit", "clip_vision_model", "falcon", "deberta-v2")  # fmt: skip
_OWN_SIZES = ("distilbert", "t5", "bart", "mbart", "whisper", "bloom", "mpt", "gptj", "codegen", "rwkv", "mamba2")
_AUTO = {
    "AutoModelForMaskedLM": ("bert", "roberta", "electra", "distilbert", "albert", "modernbert", "deberta-v2"),
    "AutoModelForSeq2SeqLM": ("t5", "bart", "mbart"),
    "AutoModelForSpeechSeq2Seq": ("whisper",),
    "AutoModel": ("vit", "clip_vision_model", "clip_text_model"),
}
UNSUPPORTED: dict[str, dict[str, Any]] = {
    "deberta-v2": {},
    "mamba2": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_heads": 8,
        "head_dim": 16,
        "state_size": 8,
        "n_groups": 1,
    },
    "rwkv": {"hidden_size": 64, "num_hidden_layers": 2, "attention_hidden_size": 64},
}
ARCHITECTURES = tuple(_SPECIAL)
ENCODERS = ("bert", "roberta", "electra", "distilbert", "albert", "modernbert", "clip_text_model")
BOTH = ("t5", "bart", "mbart", "whisper")
VISION = ("vit", "clip_vision_model")
CACHED = ("bloom", "falcon", "mpt", "gptj", "codegen")
HYBRIDS = ("qwen3_next", "jamba", "falcon_h1", "lfm2")
DECODERS = tuple(kind for kind in ARCHITECTURES if kind not in ENCODERS + BOTH + VISION)
# Small windows, and other variants of an architecture
VARIANTS: dict[tuple[str, str], dict[str, Any]] = {
    **{(kind, "window8"): {"sliding_window": 8} for kind in
       ("mistral", "mixtral", "phi3", "starcoder2", "cohere2", "gemma2", "gemma3_text", "gemma4_text", "gpt_oss")},
    ("qwen2", "window8"): {
        "sliding_window": 8, "use_sliding_window": True,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    ("llama4_text", "chunk8"): {"attention_chunk_size": 8},
    ("modernbert", "window8"): {"local_attention": 8},
    ("falcon", "alibi"): {"multi_query": False, "alibi": True},
    ("falcon", "new"): {"multi_query": False, "new_decoder_architecture": True, "num_kv_heads": 2},
}  # fmt: skip
CASES = [(kind, "") for kind in ARCHITECTURES] + list(VARIANTS)
SLIDING = {kind: changes for (kind, name), changes in VARIANTS.items() if name in ("window8", "chunk8")}


def case_name(case: tuple[str, str]) -> str:
    return "-".join(part for part in case if part)


def _auto(kind: str) -> str:
    return next((auto for auto, kinds in _AUTO.items() if kind in kinds), "AutoModelForCausalLM")


def tiny_model(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A fresh tiny model of `kind` (a `config.model_type`)."""
    import transformers

    special = _SPECIAL.get(kind) or UNSUPPORTED.get(kind, {})
    sizes = dict(_SIZES)
    if kind in _OWN_SIZES:
        sizes = {name: sizes[name] for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
        sizes |= {"hidden_size": 64} if kind == "bloom" else {}
        sizes |= {"max_position_embeddings": 256} if kind in ("distilbert", "bart", "mbart") else {}
        sizes |= {"tie_word_embeddings": False} if kind in ("gptj", "codegen") else {}
    if kind in _ONE_HEAD_COUNT:
        sizes = {name: size for name, size in sizes.items() if name not in ("num_key_value_heads", "head_dim")}
    if kind == "gpt2":
        sizes.pop("intermediate_size")
    if kind in VISION:
        sizes.pop("vocab_size")
    settings = {**sizes, **special, **changes}
    settings = {_OTHER_NAMES.get(kind, {}).get(name, name): value for name, value in settings.items()}
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(kind, **settings)
    model = getattr(transformers, _auto(kind)).from_config(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(_GENTLER.get(kind, SCALE))
    return model.eval()


def tiny_base(kind: str = "llama", seed: int = 0, chat: bool = False, **changes: Any) -> Base:
    return Base(tiny_model(kind, seed, **changes), byte_tokenizer(chat), name=f"tiny-{kind}")


@cache
def byte_tokenizer(chat: bool = False) -> Any:
    """One token per UTF-8 byte, plus padding, begin and end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )
    assert (fast.bos_token_id, fast.eos_token_id, fast.pad_token_id) == (BOS, EOS, PAD)
    if chat:
        fast.chat_template = (
            "{% for m in messages %}{{ '<s>' + m['role'] + ':' + m['content'] + '</s>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}"
        )
    return fast


def sample_inputs(base: Base, length: int, seed: int = 1) -> dict[str, torch.Tensor]:
    """Inputs of one row that `Base.capture` can take keys and values from, `length` tokens where there are tokens."""
    generator = torch.Generator().manual_seed(seed)
    kind = base.model.config.model_type
    ids = torch.randint(3, 250, (1, length), generator=generator)
    if kind in VISION:
        return {"pixel_values": torch.randn(1, 3, 32, 32, generator=generator)}
    if kind == "whisper":
        return {"input_features": torch.randn(1, 8, 40, generator=generator), "decoder_input_ids": ids}
    return {"input_ids": ids}


def trained_like(base: Base, length: int, seed: int = 1, grad: bool = False, noise: float = 0.3) -> Prefix:
    """A prefix of real keys and values, moved a little as training would."""
    generator = torch.Generator().manual_seed(seed)
    slots = {}
    for name, kv in base.capture(**sample_inputs(base, length, seed)).items():
        cut = [part[:, :length] for part in kv]
        moved = [part + noise * part.std() * torch.randn(part.shape, generator=generator).to(part) for part in cut]
        slots[name] = KV(*(part.detach().requires_grad_(grad) for part in moved))
    return Prefix(slots, base.default_offset(length), base.fingerprint)


def random_batch(sizes: list[int], side: str = "right", seed: int = 2) -> dict[str, torch.Tensor]:
    """Random tokens of the given lengths, padded on one side, with their attention mask."""
    generator = torch.Generator().manual_seed(seed)
    width = max(sizes)
    ids = torch.full((len(sizes), width), PAD)
    mask = torch.zeros(len(sizes), width, dtype=torch.long)
    for row, size in enumerate(sizes):
        where = slice(0, size) if side == "right" else slice(width - size, width)
        ids[row, where] = torch.randint(3, 250, (size,), generator=generator)
        mask[row, where] = 1
    return {"input_ids": ids, "attention_mask": mask}


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm())
