"""The architectures that prefixes attach to: a table by `config.model_type`, and what a proof has found of others."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal

from foreword.errors import UnsupportedModelError

Kind = Literal["decoder", "encoder", "encoder-decoder"]
Positions = Literal["rotary", "learned", "relative", "alibi", "none"]
Route = Literal["attention", "cache"]
Rotary = Literal["half", "interleaved", "last half", "unknown"]

VERIFIED = "verified at load"
_PROVEN = "_foreword_architecture"  # attribute of a model outside the table, once it is proven


@dataclass(frozen=True)
class Architecture:
    """How a prefix attaches to one architecture.

    attention: class name of its attention modules. also: class names of further ones, such as cross attention.
    kind: decoder, encoder or encoder-decoder; slots are called `decoder.i`, `encoder.i`, or both and `cross.i`.
    positions: rotary (also where some layers have none), learned (a table whose end is a hard limit),
    relative (a bias on scores), alibi, or none.
    route: "attention" (inside Transformers' AttentionInterface) or "cache" (through `past_key_values`,
    for models with attention code of their own).
    per_call: one module computes several layers in turn (ALBERT); the order of its calls tells which layer it is.
    layout: how rotary positions pair a key's channels: "half" (i with i + r/2 of the first r), "interleaved"
    (2i with 2i + 1), "last half" (the last r channels), or "unknown" (an offset can't be changed).
    limit: config field with the number of positions in the model's table.
    after_padding: positions are counted from `pad_token_id` + 1, so `pad_token_id` + 1 fewer are usable, and they can't
    be shifted from outside (RoBERTa).
    recurrent: it also has recurrent or convolutional parts, whose state depends on earlier tokens.
    counts_mask: without position_ids the model counts positions from the attention mask.
    verified: it is outside the table, and was found by a proof. Cross attention of a decoder then has no slot; it is
    idle unless the caller gives it states.
    packs: False if rows can't be packed although attention and positions alone connect tokens.
    """

    attention: str
    kind: Kind = "decoder"
    positions: Positions = "rotary"
    route: Route = "attention"
    per_call: bool = False
    layout: Rotary = "half"
    limit: str = "max_position_embeddings"
    after_padding: bool = False
    counts_mask: bool = False
    recurrent: bool = False
    also: tuple[str, ...] = ()
    packs: bool = True
    verified: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names of all its attention modules."""
        return (self.attention, *self.also)

    @property
    def rotary(self) -> Rotary | None:
        """The layout, or None where positions are not rotary."""
        return self.layout if self.positions == "rotary" else None


def _encoder(attention: str, positions: Positions = "learned", **more: Any) -> Architecture:
    return Architecture(attention, "encoder", positions, **more)


def _both(attention: str, positions: Positions = "learned", limit: str = "max_position_embeddings") -> Architecture:
    return Architecture(attention, "encoder-decoder", positions, limit=limit)


def _cached(attention: str, positions: Positions, **more: Any) -> Architecture:
    return Architecture(attention, positions=positions, route="cache", **more)


ARCHITECTURES = {
    "cohere2": Architecture("Cohere2Attention", layout="interleaved"),
    "deepseek_v3": Architecture("DeepseekV3Attention", layout="last half"),
    "falcon_h1": Architecture("FalconH1Attention", recurrent=True),
    "gemma2": Architecture("Gemma2Attention"),
    "gemma3_text": Architecture("Gemma3Attention"),
    "gemma4_text": Architecture("Gemma4TextAttention"),
    "gpt2": Architecture("GPT2Attention", positions="learned"),
    "gpt_neox": Architecture("GPTNeoXAttention"),
    "gpt_oss": Architecture("GptOssAttention"),
    "granite": Architecture("GraniteAttention"),
    "jamba": Architecture("JambaAttention", positions="none", recurrent=True),
    "lfm2": Architecture("Lfm2Attention", recurrent=True),
    "llama": Architecture("LlamaAttention"),
    "llama4_text": Architecture("Llama4TextAttention", layout="interleaved"),
    "mistral": Architecture("MistralAttention"),
    "mixtral": Architecture("MixtralAttention"),
    "olmo2": Architecture("Olmo2Attention"),
    "opt": Architecture("OPTAttention", positions="learned", counts_mask=True),
    "phi3": Architecture("Phi3Attention"),
    "qwen2": Architecture("Qwen2Attention"),
    "qwen3": Architecture("Qwen3Attention"),
    "qwen3_next": Architecture("Qwen3NextAttention", recurrent=True),
    "smollm3": Architecture("SmolLM3Attention"),
    "stablelm": Architecture("StableLmAttention"),
    "starcoder2": Architecture("Starcoder2Attention"),
    # encoders
    "albert": _encoder("AlbertAttention", per_call=True),
    "bert": _encoder("BertSelfAttention"),
    "clip_text_model": _encoder("CLIPAttention"),
    "clip_vision_model": _encoder("CLIPAttention", "none"),
    "distilbert": _encoder("DistilBertSelfAttention"),
    "electra": _encoder("ElectraSelfAttention"),
    "modernbert": _encoder("ModernBertAttention", "rotary"),
    "roberta": _encoder("RobertaSelfAttention", after_padding=True),
    "vit": _encoder("ViTAttention", "none"),
    # encoder–decoders
    "bart": _both("BartAttention"),
    "mbart": _both("MBartAttention"),
    "t5": _both("T5Attention", "relative"),
    "whisper": _both("WhisperAttention", limit="max_target_positions"),
    # attention code of their own
    "bloom": _cached("BloomAttention", "alibi"),
    "codegen": _cached("CodeGenAttention", "rotary", layout="interleaved", limit="n_positions"),
    "falcon": _cached("FalconAttention", "rotary"),
    "gptj": _cached("GPTJAttention", "rotary", layout="interleaved", limit="n_positions"),
    "mpt": _cached("MptAttention", "alibi", limit="max_seq_len"),
}


def listed(config: Any) -> Architecture | None:
    """Return the table's entry for `config` or its text part; None if neither is in the table."""
    entries = (ARCHITECTURES.get(candidate.model_type) for candidate in _configs(config))
    return next((entry for entry in entries if entry), None)


def architecture_of(model: Any) -> Architecture:
    """Return the table's entry for `model`, or what a proof has found (`remember`).

    Raises `UnsupportedModelError` for any other model; it names the attention module.
    """
    architecture: Architecture | None = listed(model.config) or getattr(model, _PROVEN, None)
    if architecture is None:
        raise refusal(model, "it is not in the table and was not verified")
    return architecture


def remember(model: Any, architecture: Architecture) -> None:
    """Let `architecture_of` return `architecture` for `model`, which is outside the table and was proven."""
    model.__dict__[_PROVEN] = architecture


def support_of(model: Any) -> str | None:
    """Return "verified at load" for a proven model outside the table; None for one of the table."""
    return None if listed(model.config) else VERIFIED


def refusal(model: Any, reason: str) -> UnsupportedModelError:
    """Return the error for a model that takes no prefix."""
    return UnsupportedModelError(
        f"{type(model).__name__} (model_type {model.config.model_type!r}, attention {_first_attention(model)}) "
        f"takes no prefix: {reason}. In the table, and always supported: {', '.join(sorted(ARCHITECTURES))}"
    )


def dispatching(model: Any) -> tuple[str, ...]:
    """Return the class names of the modules that dispatch through `AttentionInterface`, in the order they stand."""
    names = {type(module).__name__: None for module in model.modules() if _dispatches(module)}
    return tuple(names)


def _dispatches(module: Any) -> bool:
    """Return True if a method of the module's class itself asks Transformers for its attention function."""
    home = sys.modules.get(type(module).__module__)
    if not hasattr(home, "ALL_ATTENTION_FUNCTIONS"):
        return False
    functions = (getattr(value, "__wrapped__", value) for kind in type(module).__mro__ for value in vars(kind).values())
    codes = (getattr(function, "__code__", None) for function in functions)
    return any(code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names for code in codes)


def part_of(config: Any) -> Any:
    """Return `config` or its text part, whichever the table contains; `config` if it contains neither."""
    return next((candidate for candidate in _configs(config) if candidate.model_type in ARCHITECTURES), config)


def _configs(config: Any) -> tuple[Any, ...]:
    try:
        return (config, config.get_text_config())
    except ValueError:  # several text parts
        return (config,)


def _first_attention(model: Any) -> str:
    for path, module in model.named_modules():
        if "attention" in type(module).__name__.lower():
            return f"{type(module).__name__} at {path}"
    return "none found"
