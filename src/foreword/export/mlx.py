"""`mlx`: a prompt cache for mlx-lm 0.32 and newer, in safetensors.

`prompt-cache.safetensors` holds for each layer i the keys `i.0` and values `i.1` `[1, num_kv_heads, length, head_dim]`,
keys after rotary embedding, and `i.2`, the length. mlx-lm reads the classes of its caches from the metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from foreword.export.asking import rendered
from foreword.export.base import BaseFiles, Exporter, untried
from foreword.prefix import Prefix
from foreword.prefix.described import no_cache, on_lora
from foreword.prefix.records import public_name, recorded_template

FILE = "prompt-cache.safetensors"
# By `model_type`: their keys in mlx-lm are those of Transformers, and each layer keeps all tokens
PLAIN = (
    "cohere", "gemma", "gemma2", "gpt2", "gpt_neox", "gptj", "granite", "helium", "llama", "mistral", "mixtral",
    "nemotron", "olmo2", "olmoe", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3",
    "stablelm", "starcoder2",
)  # fmt: skip
_SCALED = ("granite", "llama", "mistral", "olmo2", "olmoe", "qwen2", "qwen3")  # those of which mlx-lm reads a scaling
_ROTATING = "mlx-lm keeps layers with sliding windows in rotating caches, which forget what a prefix holds"
_RECURRENT = "it also has recurrent layers, whose state a prefix says nothing of"
_REASONS = {
    **dict.fromkeys(("cohere2", "gemma3_text", "gemma4_text", "gpt_oss"), _ROTATING),
    **dict.fromkeys(("falcon_h1", "jamba", "lfm2", "qwen3_next"), _RECURRENT),
    "llama4_text": "mlx-lm keeps its chunked layers in caches of their own",
    "deepseek_v3": "mlx-lm caches latents there, not keys and values",
}


class Mlx(Exporter):
    name = "mlx"
    summary = "a prompt cache for mlx-lm 0.32 and newer"
    is_program = True

    def refusal(self, prefix: Prefix, base: BaseFiles) -> str | None:
        if (reason := no_cache(prefix) or on_lora(prefix)) is not None:
            return reason
        kind = prefix.base.model_type
        if kind not in PLAIN:
            return untried(kind, _REASONS, f"mlx-lm's caches were tried with {', '.join(PLAIN)}")
        return _unlike(base.config.get_text_config(), kind)

    def write(self, prefix: Prefix, base: BaseFiles, folder: Path) -> None:
        tensors: dict[str, Tensor] = {}
        facts = {"model": public_name(base.name or "BASE"), "tokenizer_config": "{}", "foreword_digest": prefix.digest}
        facts["foreword_template"] = json.dumps(recorded_template(prefix.record))
        metadata = {f"0.{name}": value for name, value in facts.items()} | {"2.0": ""}
        for layer, kv in enumerate(prefix.slots.values()):
            for number, part in enumerate(kv):
                tensors[f"{layer}.{number}"] = part.detach().cpu()[None].contiguous().clone()
            tensors[f"{layer}.2"] = torch.tensor(kv.length, dtype=torch.int32)
            metadata |= {f"1.{layer}": "KVCache", f"2.{layer + 1}.0": f"{layer}.2", f"2.{layer + 1}.1": "scalar"}
        save_file(tensors, folder / FILE, metadata=metadata)

    def usage(self, folder: Path, base: BaseFiles) -> str:
        with safe_open(folder / FILE, "pt") as file:
            template = json.loads(file.metadata()["0.foreword_template"])
        chat = template == "chat" or (template is None and base.tokenizer.chat_template is not None)
        asked = _CHAT if chat else _TEXT.format(rendered=rendered(template))
        facts = {"base": base.location, "config": top_level(base.config), "folder": str(folder), "file": FILE}
        return _USAGE.format(**facts, asked=asked)


_USAGE = """from mlx_lm import generate, load
from mlx_lm.models.cache import load_prompt_cache

folder = {folder!r}
base = {base!r}
# mlx-lm reads these at the top of config.json, where Transformers 5 no longer writes them
model, tokenizer = load(base, model_config={config!r})
# model.set_dtype(mx.float32), after import mlx.core as mx, computes in float32, as Foreword does by default
cache = load_prompt_cache(f"{{folder}}/{file}")  # load it anew for each prompt: generation writes into it
{asked}
print(generate(model, tokenizer, ids, prompt_cache=cache, max_tokens=64))"""

_CHAT = """messages = [{"role": "user", "content": "PROMPT"}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)"""
_TEXT = "ids = tokenizer.encode({rendered})"


def _unlike(config: Any, kind: str) -> str | None:
    """Say what mlx-lm does otherwise for this base; None if nothing."""
    if kind in ("llama", "mistral") and "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        return f"its base has sliding windows: {_ROTATING}"
    scaling = str(_rope(config)[0].get("rope_type", "default"))
    known = ("default", "linear", "llama3") if kind in _SCALED else ("default",)
    return None if scaling in known else f"its base scales rotary frequencies ({scaling}), which was not tried"


def top_level(config: Any) -> dict[str, Any]:
    """Return what mlx-lm looks for at the top of config.json, where Transformers 5 doesn't write it."""
    config = config.get_text_config()
    parameters = dict(_rope(config)[0])
    names = ("rope_theta", "partial_rotary_factor")
    found: dict[str, Any] = {name: parameters.pop(name) for name in names if name in parameters}
    if parameters.get("rope_type", "default") != "default":
        found["rope_scaling"] = parameters
    if config.model_type == "gpt_neox":
        own = dict(zip(names, ("rotary_emb_base", "rotary_pct"), strict=True))
        found = {own.get(name, name): value for name, value in found.items()}
    return {"n_ctx": config.n_positions} if config.model_type == "gpt2" else found


def _rope(config: Any) -> list[dict[str, Any]]:
    parameters = getattr(config, "rope_parameters", None) or {}
    return [entry for entry in parameters.values() if isinstance(entry, dict)] or [parameters]
