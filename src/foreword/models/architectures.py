"""The closed table of architectures that prefixes attach to, by `config.model_type`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Architecture:
    """attention: class name of the self-attention module. positions: "rotary" (also where some layers
    have none) or "learned" (a table whose end is a hard limit)."""

    attention: str
    positions: Literal["rotary", "learned"] = "rotary"


ARCHITECTURES = {
    "cohere2": Architecture("Cohere2Attention"),
    "gemma2": Architecture("Gemma2Attention"),
    "gemma3_text": Architecture("Gemma3Attention"),
    "gpt2": Architecture("GPT2Attention", "learned"),
    "gpt_neox": Architecture("GPTNeoXAttention"),
    "granite": Architecture("GraniteAttention"),
    "llama": Architecture("LlamaAttention"),
    "mistral": Architecture("MistralAttention"),
    "mixtral": Architecture("MixtralAttention"),
    "olmo2": Architecture("Olmo2Attention"),
    "opt": Architecture("OPTAttention", "learned"),
    "phi3": Architecture("Phi3Attention"),
    "qwen2": Architecture("Qwen2Attention"),
    "qwen3": Architecture("Qwen3Attention"),
    "smollm3": Architecture("SmolLM3Attention"),
    "stablelm": Architecture("StableLmAttention"),
    "starcoder2": Architecture("Starcoder2Attention"),
}
