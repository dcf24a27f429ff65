"""Tiny random models of every supported architecture, with weights scaled up, and a byte tokenizer.

At standard initialisation a tiny model's logits hardly depend on positions or context, so errors hide;
scaled up they show.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from foreword.models import Base
from foreword.prefix import KV, Prefix

VOCAB = 260
BOS, EOS, PAD = 256, 257, 258
SCALE = 10.0

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
    "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "tie_word_embeddings": False,
}  # fmt: skip
# Per architecture: what differs. "window": the setting that makes some or all layers slide.
_SPECIAL: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"layer_types": ["full_attention"] * 3},
    "qwen3": {"layer_types": ["full_attention"] * 3},
    "mistral": {"sliding_window": None},
    "mixtral": {"sliding_window": None, "num_local_experts": 4, "num_experts_per_tok": 2},
    "phi3": {"sliding_window": None},
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
}  # fmt: skip
ARCHITECTURES = tuple(_SPECIAL)
SLIDING = {
    "mistral": {"sliding_window": 8},
    "mixtral": {"sliding_window": 8},
    "phi3": {"sliding_window": 8},
    "starcoder2": {"sliding_window": 8},
    "cohere2": {"sliding_window": 8},
    "gemma2": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8},
    "qwen2": {
        "sliding_window": 8, "use_sliding_window": True,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}  # fmt: skip


def tiny_model(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A fresh tiny model of `kind` (a `config.model_type`)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**_SIZES, **_SPECIAL[kind], **changes}
    if kind == "phi3":
        settings |= {"embd_pdrop": 0.0, "resid_pdrop": 0.0}
    if kind == "gpt2":  # GPT-2 has its own names for sizes
        names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        settings = {names.get(name, name): value for name, value in settings.items() if name not in ("head_dim",)}
        settings["n_positions"] = settings.pop("max_position_embeddings")
        for name in ("num_key_value_heads", "intermediate_size"):
            settings.pop(name)
    if kind in ("opt", "gpt_neox"):
        for name in ("num_key_value_heads", "head_dim"):
            settings.pop(name)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(SCALE)
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


def trained_like(base: Base, length: int, seed: int = 1, grad: bool = False, noise: float = 0.3) -> Prefix:
    """A prefix of real keys and values, moved a little as training would."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 250, (1, length), generator=generator)
    slots = {}
    for name, kv in base.capture(ids).items():
        moved = [part + noise * part.std() * torch.randn(part.shape, generator=generator).to(part) for part in kv]
        slots[name] = KV(*(part.detach().requires_grad_(grad) for part in moved))
    return Prefix(slots, length, base.fingerprint)


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
