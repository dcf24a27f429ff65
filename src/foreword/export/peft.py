"""`peft`: an adapter folder that `PeftModel.from_pretrained(model, folder)` loads.

Keys and values become prefix tuning; a prompt that is inserted among the input embeddings becomes prompt tuning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from foreword.export.asking import asked, metadata_of
from foreword.export.base import BaseFiles, Exporter
from foreword.export.peft_layout import (
    CONFIG,
    DTYPES,
    NAME,
    TENSORS,
    decoder_layers,
    flattened,
    for_decoder,
    smallest_window,
)
from foreword.files import read_json, write_json
from foreword.models import bundled
from foreword.models.architectures import ARCHITECTURES, listed
from foreword.prefix import Prefix
from foreword.prefix.described import no_cache, on_lora
from foreword.prefix.records import is_local

_USAGE = """import torch
from peft import PeftModel
from transformers import {auto}, AutoTokenizer

folder = {folder!r}
base = {base!r}
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained({auto}.from_pretrained(base), folder).eval()
{asked}
mask = torch.ones_like(ids)
answer = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=64, do_sample=False)[0]
print(tokenizer.decode({new}, skip_special_tokens=True))"""
_FORGETS = """
# PEFT's layers with a window of {window:,} tokens lose the prefix once prefix and tokens are more; Foreword's don't"""


class Peft(Exporter):
    name = "peft"
    summary = "an adapter for PEFT: prefix tuning, or prompt tuning where the prompt is inserted"
    is_program = True

    def refusal(self, prefix: Prefix, base: BaseFiles) -> str | None:
        if on_lora(prefix) is not None:
            return "it was made on a base with a LoRA, and PEFT runs one adapter, not two"
        return _no_prompt(prefix, base) if prefix.kind.inserted else _no_prefix(prefix, base)

    def write(self, prefix: Prefix, base: BaseFiles, folder: Path) -> None:
        kvs = list(prefix.slots.values())
        layers = for_decoder(kvs) if kvs and base.config.is_encoder_decoder else kvs
        table = prefix.embeddings if prefix.kind.inserted else flattened(layers)
        if table is not None:
            save_file({NAME: table.detach().cpu().contiguous().clone()}, folder / TENSORS, metadata_of(prefix))
        write_json(folder / CONFIG, _settings(prefix, base.config, len(layers) or prefix.base.num_layers))

    def usage(self, folder: Path, base: BaseFiles) -> str:
        auto = "AutoModelForSeq2SeqLM" if base.config.is_encoder_decoder else "AutoModelForCausalLM"
        text = _USAGE.format(
            auto=auto,
            base=base.location,
            folder=str(folder),
            asked=asked(folder / TENSORS),
            new="answer" if base.config.is_encoder_decoder else "answer[ids.shape[1] :]",
        )
        window = smallest_window(base.config)
        inserted = read_json(folder / CONFIG)["peft_type"] == "PROMPT_TUNING"
        return text if window is None or inserted else text + _FORGETS.format(window=window)


def _no_prefix(prefix: Prefix, base: BaseFiles) -> str | None:
    """Say why keys and values can't be PEFT's prefix tuning; None if they can."""
    known = ARCHITECTURES.get(prefix.base.model_type)
    both = prefix.kind.is_cache and known is not None and known.kind == "encoder-decoder"
    if (reason := _no_decoders_prefix(prefix, base.config) if both else no_cache(prefix)) is not None:
        return reason
    if len({tuple(part.shape) for kv in prefix.slots.values() for part in kv}) > 1:
        return "PEFT has as many heads of one width in every layer; this base has not"
    if (reason := _no_dtype(prefix)) is not None:
        return reason
    if (entry := listed(base.config)) is not None and entry.recurrent:
        return "PEFT's cache has no place for the states of this base's recurrent layers"
    window = smallest_window(base.config)
    if window is not None and prefix.length >= window:
        return (
            f"it has {prefix.length:,} virtual tokens, of which PEFT drops what exceeds the base's window of {window:,}"
        )
    return None


def _no_decoders_prefix(prefix: Prefix, config: Any) -> str | None:
    """Say why keys and values of an encoder–decoder are none that PEFT gives to a decoder; None if they are."""
    others = sorted({name.partition(".")[0] for name in prefix.slots} - {"decoder"})
    if others:
        return (
            f"in an encoder–decoder PEFT's prefix is the decoder's own; this one has keys in {' and '.join(others)} too"
        )
    if list(prefix.slots) != [f"decoder.{layer}" for layer in range(decoder_layers(config))]:
        return "PEFT's prefix has keys and values in every layer of the decoder"
    if len({kv.length for kv in prefix.slots.values()}) > 1:
        return "PEFT's prefix has as many tokens in every layer; this one has not"
    if prefix.position_offset != prefix.length:
        return (
            f"PEFT's prefix moves the decoder's tokens up by its length {prefix.length}, but this one has "
            f"position_offset {prefix.position_offset}"
        )
    return None


def _no_prompt(prefix: Prefix, base: BaseFiles) -> str | None:
    """Say why an inserted prompt can't be PEFT's prompt tuning; None if it can."""
    if "[V]" in str(prefix.record.get("template")):
        return "PEFT puts virtual tokens in front of the text, and this prefix has places for them in its template"
    if prefix.position_offset:
        return f"PEFT counts positions from 0, but this prompt has position_offset {prefix.position_offset}"
    if (reason := _no_dtype(prefix)) is not None:
        return reason
    if (entry := listed(base.config)) is not None and entry.kind == "encoder":
        return "in an encoder its virtual tokens stand behind [CLS], which PEFT puts them before"
    return None


def _no_dtype(prefix: Prefix) -> str | None:
    parts = prefix.extras.values() if prefix.kind.inserted else (part for kv in prefix.slots.values() for part in kv)
    dtypes = {part.dtype for part in parts}
    if len(dtypes) == 1 and dtypes <= set(DTYPES):
        return None
    found = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    return (
        f"PEFT holds one tensor, of float32 at most, and this prefix has {found}; cast it with Prefix.to(torch.float32)"
    )


def _settings(prefix: Prefix, config: Any, layers: int) -> dict[str, Any]:
    """Return what `adapter_config.json` says. Every shape is given, so that PEFT derives none from the base."""
    source = prefix.base.source
    told = {
        "base_model_name_or_path": None if source is None or source == bundled.NAME or is_local(source) else source,
        "inference_mode": True,
        "num_layers": layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": prefix.length,
        "task_type": "SEQ_2_SEQ_LM" if config.is_encoder_decoder else "CAUSAL_LM",
    }
    if prefix.embeddings is not None:
        heads = int(getattr(config.get_text_config(), "num_attention_heads", 1))
        told |= {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM"}
        return told | {"num_attention_heads": heads, "token_dim": prefix.embeddings.shape[1]}
    told["num_transformer_submodules"] = 2 if config.is_encoder_decoder else 1
    heads, _, width = next(iter(prefix.slots.values())).key.shape
    told |= {"peft_type": "PREFIX_TUNING", "prefix_projection": False, "encoder_hidden_size": heads * width}
    return told | {"num_attention_heads": heads, "token_dim": heads * width}
