"""`transformers`: a key/value cache for Transformers alone, without Foreword.

`cache.safetensors` holds `key.<layer>` and `value.<layer>` `[1, num_kv_heads, length, head_dim]`, keys after rotary
embedding: what `DynamicCache.update` takes. Real tokens then stand behind the prefix, at positions from its length on.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from foreword.export.base import BaseFiles, Exporter
from foreword.prefix import Prefix
from foreword.prefix.described import no_cache

FILE = "cache.safetensors"
_USAGE = """import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

model, tokenizer = AutoModelForCausalLM.from_pretrained({base!r}), AutoTokenizer.from_pretrained({base!r})
tensors, cache = load_file("{file}"), DynamicCache(config=model.config)
for layer in range(len(tensors) // 2):
    cache.update(tensors[f"key.{{layer}}"], tensors[f"value.{{layer}}"], layer)
{asked}
ids = torch.cat([torch.zeros(1, cache.get_seq_length(), dtype=ids.dtype), ids], dim=1)  # places for the prefix
print(tokenizer.decode(model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache)[0]))"""

_CHAT = """messages = [{"role": "user", "content": "PROMPT"}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]"""
_TEXT = """ids = tokenizer({template!r}.format(input="PROMPT"), return_tensors="pt")["input_ids"]"""


class TransformersCache(Exporter):
    name = "transformers"
    summary = "a key/value cache in safetensors, for Transformers without Foreword"

    def refusal(self, prefix: Prefix, base: BaseFiles) -> str | None:
        return no_cache(prefix)

    def write(self, prefix: Prefix, base: BaseFiles, folder: Path) -> None:
        tensors = {}
        for layer, (key, value) in enumerate(prefix.slots.values()):
            tensors[f"key.{layer}"] = key.detach().cpu()[None].contiguous().clone()
            tensors[f"value.{layer}"] = value.detach().cpu()[None].contiguous().clone()
        told = {"template": prefix.record.get("template"), "rendering": prefix.record.get("rendering")}
        metadata = {"format": "pt", "digest": prefix.digest, "rendering": json.dumps(told)}
        save_file(tensors, folder / FILE, metadata=metadata)

    def usage(self, folder: Path, base: BaseFiles) -> str:
        with safe_open(folder / FILE, "pt") as file:
            template = json.loads(file.metadata()["rendering"])["template"]
        asked = _CHAT if template == "chat" else _TEXT.format(template=template or "{input}")
        return _USAGE.format(base=base.location, file=folder / FILE, asked=asked)
