"""`peft`: a prefix from the folder that PEFT's `save_pretrained` wrote.

Prefix tuning and cartridges are keys and values, and stay what they are. Prompt tuning and P-tuning are input
embeddings: where that is exact the base turns them into keys and values, once; elsewhere they are inserted in every row
(see `base.prompts`). Real tokens stand behind the virtual ones, as PEFT places them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreword.base import Base
from foreword.base.prompts import insertion_obstacle, prompt_kind
from foreword.errors import ImportFormatError, PrefixError, PrefixMismatchError
from foreword.export.base import Importer
from foreword.export.peft_layout import CONFIG, unflattened, used
from foreword.export.peft_reading import Adapter, read_adapter, read_settings, read_table
from foreword.models.architectures import architecture_of
from foreword.prefix import EMBEDDINGS, KV, Prefix
from foreword.prefix.kinds import EMBEDDING


class PeftAdapter(Importer):
    name = "peft"
    summary = "an adapter of PEFT: prefix_tuning, cartridge, prompt_tuning or p_tuning"

    def recognises(self, folder: Path) -> bool:
        return os.path.isfile(folder / CONFIG)

    def base_name(self, folder: Path) -> str | None:
        settings = read_settings(folder)
        name = settings.get("base_model_name_or_path")
        if name is not None and not isinstance(name, str):
            raise ImportFormatError(f"{folder / CONFIG}: base_model_name_or_path must be text or null")
        return name or None

    def read(self, folder: Path, base: Base) -> Prefix:
        adapter = read_adapter(folder)
        _require_task(adapter, base)
        if adapter.length >= base.max_positions:
            raise PrefixMismatchError(
                f"{adapter.file}: num_virtual_tokens is {adapter.length:,}; {base.name} has {base.max_positions:,} "
                "positions, of which real tokens need some"
            )
        prefix = _from_cache(adapter, base) if adapter.is_cache else _from_prompt(adapter, base)
        method = adapter.kind.lower()
        record = {"imported": {"from": self.name, "method": method, "num_virtual_tokens": adapter.length}}
        return prefix.with_record(method, record)


@dataclass(frozen=True)
class _Shape:
    """What every layer of a decoder has. told: the layers of PEFT's table."""

    layers: int
    told: int
    heads: int
    width: int


def _from_cache(adapter: Adapter, base: Base) -> Prefix:
    """Return the prefix of the keys and values that PEFT saved."""
    shape = _uniform(adapter, base)
    token_dim = shape.heads * shape.width
    needed = {"num_layers": shape.told, "num_attention_heads": shape.heads, "token_dim": token_dim}
    _require_fields(adapter, base, needed)
    _require_window(adapter, base)
    table = read_table(adapter, adapter.length, 2 * shape.told * token_dim)
    keys, values = unflattened(table, shape.told, shape.heads)
    try:
        if base.model.config.is_encoder_decoder:
            return _of_decoder(keys, values, shape.layers, base)
        return base.prefix_from_kv(keys, values, position_offset=base.default_offset(adapter.length))
    except PrefixMismatchError:
        raise
    except PrefixError as error:
        raise ImportFormatError(f"{adapter.tensors}: {error}") from error


def _of_decoder(keys: list[Tensor], values: list[Tensor], layers: int, base: Base) -> Prefix:
    """Return the prefix of an encoder–decoder's decoder, whose tokens stand behind it."""
    places = enumerate(used(layers, len(keys)))
    slots = {f"decoder.{layer}": KV(keys[place].clone(), values[place].clone()) for layer, place in places}
    prefix = Prefix(slots, keys[0].shape[1], base.fingerprint)
    base.require_fit(prefix)
    prefix.require_finite()
    return prefix


def _from_prompt(adapter: Adapter, base: Base) -> Prefix:
    """Return the prefix of the input embeddings that PEFT saved, as keys and values where the two are equal."""
    _require_fields(adapter, base, {"token_dim": base.embedding_width})
    table = read_table(adapter, adapter.length * adapter.copies, base.embedding_width)
    embeddings = table[: adapter.length].clone()  # an encoder–decoder's second half is never used
    if not bool(torch.isfinite(embeddings).all()):
        raise ImportFormatError(f"{adapter.tensors}: prompt_embeddings holds NaN or infinity")
    if not prompt_kind(base.model).inserted:
        return _captured(adapter, embeddings, base)
    if (obstacle := insertion_obstacle(base)) is not None:
        raise ImportFormatError(f"{adapter.file}: {obstacle}")
    extras = {EMBEDDINGS: embeddings}
    return Prefix(slots={}, position_offset=0, base=base.fingerprint, merge=EMBEDDING.name, extras=extras)


def _captured(adapter: Adapter, embeddings: Tensor, base: Base) -> Prefix:
    """Return the keys and values of `embeddings [m, width]` at positions 0…m−1, which keeps the embeddings too."""
    slots = base.capture(inputs_embeds=embeddings[None].to(base.dtype))
    slots = {name: type(kv)(kv.key.cpu(), kv.value.cpu()) for name, kv in slots.items()}
    prefix = Prefix(slots, base.default_offset(len(embeddings)), base.fingerprint)
    try:
        prefix.require_finite()
    except PrefixError as error:
        raise ImportFormatError(f"{adapter.tensors}: computed by {base.name} from it, {error}") from error
    return replace(prefix, extras={EMBEDDINGS: embeddings})


def _require_task(adapter: Adapter, base: Base) -> None:
    """Raise unless PEFT would run the adapter on `base` as Foreword does.

    Raises `ImportFormatError` for what can't be a prefix, `PrefixMismatchError` for another kind of base.
    """
    both = bool(base.model.config.is_encoder_decoder)
    if not both and any(slot.role != "decoder" for slot in base.slots):
        raise ImportFormatError(f"{adapter.file}: {base.name} is an encoder; adapters of decoders are read")
    needed = "SEQ_2_SEQ_LM" if both else "CAUSAL_LM"
    if adapter.task not in (None, needed):
        raise PrefixMismatchError(f"{adapter.file}: task_type is {adapter.task}, {base.name} needs {needed}")
    if both and adapter.is_cache and not base.model_slots.shifts:
        raise ImportFormatError(
            f"{adapter.file}: in an encoder–decoder PEFT counts the prefix among the decoder's positions, and "
            f"{base.name} takes none from outside; train it here instead"
        )
    if both and adapter.is_cache and adapter.copies != 2:
        raise ImportFormatError(
            f"{adapter.file}: num_transformer_submodules is {adapter.copies}; an encoder–decoder needs 2 (or null)"
        )
    if not both and adapter.copies != 1:
        raise ImportFormatError(
            f"{adapter.file}: num_transformer_submodules is {adapter.copies}; a decoder needs 1 (or null)"
        )


def _uniform(adapter: Adapter, base: Base) -> _Shape:
    """Return the shape that all layers have. Raises `ImportFormatError` if PEFT can't give each layer a prefix."""
    slots = [slot for slot in base.slots if slot.role == "decoder"]
    shapes = {(slot.num_kv_heads, width) for slot in slots for width in (slot.key_dim, slot.value_dim)}
    both = bool(base.model.config.is_encoder_decoder)
    layers = len(slots) if both else base.fingerprint.num_layers
    if len(shapes) > 1 or len(slots) != layers or architecture_of(base.model).recurrent:
        raise ImportFormatError(
            f"{adapter.file}: the layers of {base.name} differ in their keys and values, or not all have some; PEFT's "
            "prefix has one shape, and acts on a part of them"
        )
    ((heads, width),) = shapes
    return _Shape(layers, _told_layers(adapter, layers, base) if both else layers, heads, width)


def _told_layers(adapter: Adapter, layers: int, base: Base) -> int:
    """Return how many layers the table for an encoder–decoder has, by default as many as the encoder, as in PEFT.

    Raises `PrefixMismatchError` if they are too few for the decoder, or more than a prefix for `base` can have.
    """
    told, encoder = adapter.shape["num_layers"], base.fingerprint.num_layers
    told = encoder if told is None else told
    if not layers <= told <= max(2 * layers, encoder):
        raise PrefixMismatchError(
            f"{adapter.file}: num_layers is {told:,}; the decoder of {base.name} has {layers:,} layers"
        )
    return told


def _require_window(adapter: Adapter, base: Base) -> None:
    """Raise `ImportFormatError` for a prefix that PEFT could never use as a whole, and Foreword would."""
    windows = [slot.sliding_window for slot in base.slots if slot.sliding_window is not None]
    if windows and adapter.length >= min(windows):
        raise ImportFormatError(
            f"{adapter.file}: num_virtual_tokens is {adapter.length:,}, of which PEFT drops what exceeds the window of "
            f"{min(windows):,} in {base.name}; here all would be seen, which is not what was trained"
        )


def _require_fields(adapter: Adapter, base: Base, needed: dict[str, Any]) -> None:
    """Raise `PrefixMismatchError` if a shape that the settings tell is not that of `base`."""
    for field, value in needed.items():
        told = adapter.shape[field]
        if told not in (None, value):
            raise PrefixMismatchError(f"{adapter.file}: {field} is {told:,}; {base.name} needs {value:,}")
