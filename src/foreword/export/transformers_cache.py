"""`transformers`: a key/value cache for Transformers alone, without Foreword.

`cache.safetensors` holds `key.<layer>` and `value.<layer>` `[1, num_kv_heads, length, head_dim]`, keys after rotary
embedding: what `DynamicCache.update` takes. Real tokens then stand behind the prefix, at positions from its length on.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from foreword.export.asking import asked, metadata_of
from foreword.export.base import BaseFiles, Exporter
from foreword.models.architectures import ARCHITECTURES
from foreword.prefix import Prefix
from foreword.prefix.described import ENCODER_DECODER, no_cache

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


class TransformersCache(Exporter):
    name = "transformers"
    summary = "a key/value cache in safetensors, for Transformers without Foreword"

    def refusal(self, prefix: Prefix, base: BaseFiles) -> str | None:
        known = ARCHITECTURES.get(prefix.base.model_type)
        if prefix.kind.is_cache and known is not None and known.kind == "encoder-decoder":
            return ENCODER_DECODER
        return no_cache(prefix)

    def write(self, prefix: Prefix, base: BaseFiles, folder: Path) -> None:
        tensors = {}
        for layer, (key, value) in enumerate(prefix.slots.values()):
            tensors[f"key.{layer}"] = key.detach().cpu()[None].contiguous().clone()
            tensors[f"value.{layer}"] = value.detach().cpu()[None].contiguous().clone()
        save_file(tensors, folder / FILE, metadata=metadata_of(prefix))

    def usage(self, folder: Path, base: BaseFiles) -> str:
        return _USAGE.format(base=base.location, file=folder / FILE, asked=asked(folder / FILE))
