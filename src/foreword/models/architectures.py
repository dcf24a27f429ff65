"""The closed table of architectures that prefixes attach to, by `config.model_type`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from foreword.errors import UnsupportedModelError

Kind = Literal["decoder", "encoder", "encoder-decoder"]
Positions = Literal["rotary", "learned", "relative", "alibi", "none"]
Route = Literal["attention", "cache"]
Rotary = Literal["half", "interleaved", "last half"]


@dataclass(frozen=True)
class Architecture:
    """How a prefix attaches to one architecture.

    attention: class name of its attention modules.
    kind: decoder, encoder or encoder-decoder; slots are called `decoder.i`, `encoder.i`, or both and `cross.i`.
    positions: rotary (also where some layers have none), learned (a table whose end is a hard limit),
    relative (a bias on scores), alibi, or none.
    route: "attention" (inside Transformers' AttentionInterface) or "cache" (through `past_key_values`,
    for models with attention code of their own).
    per_call: one module computes several layers in turn (ALBERT); the order of its calls tells which layer it is.
    layout: how rotary positions pair a key's channels: "half" (i with i + r/2 of the first r), "interleaved"
    (2i with 2i + 1), or "last half" (the last r channels).
    limit: config field with the number of positions in the model's table.
    after_padding: positions are counted from `pad_token_id` + 1, so `pad_token_id` + 1 fewer are usable, and they can't
    be shifted from outside (RoBERTa).
    recurrent: it also has recurrent or convolutional parts, whose state depends on earlier tokens.
    counts_mask: without position_ids the model counts positions from the attention mask.
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


def architecture_of(model: Any) -> Architecture:
    """Return the table's entry for `model`. Raises `UnsupportedModelError`, which names the attention module."""
    entries = (ARCHITECTURES.get(config.model_type) for config in _configs(model.config))
    architecture = next((entry for entry in entries if entry), None)
    if architecture is not None:
        return architecture
    config = model.config
    raise UnsupportedModelError(
        f"{type(model).__name__} (model_type {config.model_type!r}, attention {_first_attention(model)}) "
        f"takes no prefix; supported: {', '.join(sorted(ARCHITECTURES))}"
    )


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
