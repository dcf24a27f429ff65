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

folder = {folder!r}
base = {base!r}
model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
tensors, cache = load_file(f"{{folder}}/{file}"), DynamicCache(config=model.config)
for layer in range(len(tensors) // 2):
    cache.update(tensors[f"key.{{layer}}"], tensors[f"value.{{layer}}"], layer)
{asked}
ids = torch.cat([torch.zeros(1, cache.get_seq_length(), dtype=ids.dtype), ids], dim=1)  # places for the prefix
mask = torch.ones_like(ids)
answer = model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True))"""


class TransformersCache(Exporter):
    name = "transformers"
    summary = "a key/value cache in safetensors, for Transformers without Foreword"
    is_program = True

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
        return _USAGE.format(base=base.location, folder=str(folder), file=FILE, asked=asked(folder / FILE))
