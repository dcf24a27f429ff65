"""Prefixes made of texts, tensors and other prefixes.

`from_text`, `from_kv` and `with_offset` implement the methods of `Prefix` with these names. `concat` puts one trained
prefix behind another; `average` takes the mean of trained prefixes.

Trained prefixes are not trained to be combined. Concatenation is exact for two texts that don't see each other, but two
trained prefixes compete for attention, and a task's answers often get worse. Averaging makes sense for prefixes that
started from the same initialisation. Measure the result before use, or train on from it (`init="prefix"`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache

from foreword.base import rope
from foreword.base.frozen import FrozenModel
from foreword.base.rendering import require_tokenizer
from foreword.errors import (
    ConfigError,
    ExportError,
    PositionError,
    PrefixError,
    PrefixMismatchError,
    WindowWarning,
)
from foreword.models.architectures import architecture_of
from foreword.models.shapes import caches_latents
from foreword.prefix import KV, Prefix
from foreword.prefix.described import ENCODER_DECODER, no_cache


def from_text(base: FrozenModel, text: str, *, length: int | None = None) -> Prefix:
    """See `Prefix.from_text`."""
    return token_prefix(text_ids(text, base, length), base, "text")


def to_cache(base: FrozenModel, prefix: Prefix, batch_size: int = 1) -> DynamicCache:
    """See `Base.prefix_to_cache`."""
    base.require_fit(prefix)
    if batch_size < 1:
        raise ConfigError("batch_size", f"must be 1 or more, not {batch_size}")
    windows = [slot.sliding_window for slot in base.slots if slot.sliding_window is not None]
    both = prefix.kind.is_cache and base.model.config.is_encoder_decoder
    reason = ENCODER_DECODER if both else no_cache(prefix)
    if reason is None and caches_latents(base.model):
        reason = f"{base.name} caches what keys and values are made of, not themselves"
    if reason is None and windows and prefix.length >= min(windows):
        reason = f"it has {prefix.length} virtual tokens, and {base.name} has a window of {min(windows)}"
    if reason is not None:
        raise ExportError(f"the prefix can't be a cache: {reason}")
    if windows:
        warnings.warn(
            f"{base.name} has windows of {min(windows):,} tokens: once prefix and tokens are more than that, the cache "
            "forgets the prefix there; attach does not",
            WindowWarning,
            stacklevel=4,
        )
    cache = DynamicCache(config=base.model.config)
    for layer, kv in enumerate(prefix.slots.values()):
        key, value = (part.detach().to(base.device, base.dtype)[None].repeat(batch_size, 1, 1, 1) for part in kv)
        cache.update(key, value, layer)
    return cache


def text_ids(text: str, base: FrozenModel, length: int | None = None) -> list[int]:
    """Return the tokens of `text`, without special ones. With `length`, exactly that many: cut, or repeated to fill.

    Raises `PrefixError` if the text has no tokens, `ConfigError` if the base has no tokenizer.
    """
    tokenizer = require_tokenizer(base.tokenizer, base.name)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise PrefixError("the text has no tokens")
    return ids if length is None else (ids * (length // len(ids) + 1))[:length]


def token_prefix(ids: Sequence[int], base: FrozenModel, method: str) -> Prefix:
    """Return the prefix that equals the tokens `ids` in front of the input, captured at positions 0…m−1."""
    slots = base.capture(torch.tensor([list(ids)]))
    return Prefix(slots, base.default_offset(len(ids)), base.fingerprint, method=method)


def from_kv(
    base: FrozenModel, keys: Sequence[Tensor], values: Sequence[Tensor], *, position_offset: int | None = None
) -> Prefix:
    """See `Prefix.from_kv`."""
    if len(keys) != len(base.slots) or len(values) != len(base.slots):
        raise PrefixMismatchError(
            f"got {len(keys)} keys and {len(values)} values, but {base.name} has {len(base.slots)} slots"
        )
    slots = {slot.name: KV(key, value) for slot, key, value in zip(base.slots, keys, values, strict=True)}
    longest = max(int(key.shape[1]) if key.dim() == 3 else 0 for key in keys)
    offset = base.default_offset(longest) if position_offset is None else position_offset
    prefix = Prefix(slots, offset, base.fingerprint, method="kv")
    base.require_fit(prefix)
    prefix.require_finite()
    return prefix


def with_offset(base: FrozenModel, prefix: Prefix, offset: int) -> Prefix:
    """Return `prefix` with offset `offset` and its keys rotated, so that its effect stays the same.

    Exact up to rounding. Raises `PositionError` if positions are not rotary, if frequencies
    depend on length (dynamic, longrope), or if queries are scaled by position (Llama4).
    """
    base.require_fit(prefix)
    if offset < 0:
        raise PositionError(f"an offset must be 0 or more, not {offset}")
    if offset == prefix.position_offset:
        return prefix
    rope.require_rotary(base)
    delta = offset - prefix.position_offset
    slots = {name: KV(rope.rotated(kv.key, name, delta, base), kv.value) for name, kv in prefix.slots.items()}
    return replace(prefix, slots=slots, position_offset=offset)


def concat(first: Prefix, second: Prefix, base: FrozenModel) -> Prefix:
    """Return one prefix of `first` and, behind it, `second`: their keys and values concatenated.

        >>> both = foreword.concat(prefix, prefix, base)
        >>> both.length == 2 * prefix.length
        True

    With rotary positions the keys of `second` are rotated, so that it stands behind `first` as text would; the offset
    is the sum of both. In encoders, T5 and BART both have offset 0 as a rule, and so has the result. ALiBi counts
    positions by itself. A slot that only one of them has is taken from that one.
    Raises `PrefixMismatchError` unless both join attention by softmax. Raises `PositionError` for learned positions,
    whose keys can't be moved, for T5 if the prefixes don't stand as PEFT's do (each offset the length) nor both have
    offset 0, and if the offset can't be changed.
    """
    for prefix in (first, second):
        _require_cache(prefix)
        base.require_fit(prefix)
    moved, offset = second, first.position_offset + second.position_offset
    if base.model_slots.biased and offset and any(_stands_apart(prefix) for prefix in (first, second)):
        raise PositionError(
            f"in {base.name} an offset gives every key of a prefix a place, from 0 on; only prefixes whose offset is "
            "the length in every layer can stand one behind the other"
        )
    if first.position_offset and second.position_offset:
        positions = architecture_of(base.model).positions
        if positions == "learned":
            raise PositionError(
                f"{base.name} has learned positions; the second prefix's keys can't be moved behind the first's"
            )
        if positions == "rotary" and base.model_slots.explicit_positions:
            moved = with_offset(base, second, offset)
    names = [slot.name for slot in base.slots if slot.name in first.slots or slot.name in second.slots]
    slots = {name: _joined(first.slots.get(name), moved.slots.get(name)) for name in names}
    record = {"concat": [first.method, second.method]}
    return Prefix(slots, offset, base.fingerprint, method="concat", record=record)


def average(prefixes: Sequence[Prefix], weights: Sequence[float] | None = None) -> Prefix:
    """Return the weighted mean of prefixes of one base, shape and offset.

        >>> foreword.average([prefix, prefix], weights=[3, 1]).length == prefix.length
        True

    weights: one per prefix, divided by their sum; None: all equal.
    Raises `PrefixMismatchError` if bases, shapes, kinds or offsets differ, or if the weights don't fit.
    """
    if not prefixes:
        raise PrefixMismatchError("average got no prefixes")
    shares = [1.0] * len(prefixes) if weights is None else [float(weight) for weight in weights]
    if len(shares) != len(prefixes) or not sum(shares):
        raise PrefixMismatchError(
            f"{len(prefixes)} prefixes need as many weights with a sum other than 0, not {shares}"
        )
    first = prefixes[0]
    _require_cache(first)
    for prefix in prefixes[1:]:
        _require_cache(prefix)
        _require_alike(first, prefix)
    total = sum(shares)
    slots = {
        name: KV(*(_mean([prefix.slots[name][index] for prefix in prefixes], shares, total) for index in (0, 1)))
        for name in first.slots
    }
    record = {"average": [prefix.method for prefix in prefixes], "weights": [share / total for share in shares]}
    return replace(first, slots=slots, extras={}, method="average", record=record)


def _require_cache(prefix: Prefix) -> None:
    if not prefix.kind.is_cache:
        raise PrefixMismatchError(
            f"a prefix of merge {prefix.merge!r} is more than keys and values; only those of softmax go together"
        )


def _stands_apart(prefix: Prefix) -> bool:
    """Return True unless the tokens follow the prefix in each of the decoder's own slots."""
    lengths = {kv.length for name, kv in prefix.slots.items() if name.startswith("decoder.")} or {0}
    return lengths != {prefix.position_offset}


def _joined(first: KV | None, second: KV | None) -> KV:
    pairs = [kv for kv in (first, second) if kv is not None]
    key = torch.cat([kv.key.to(pairs[0].key) for kv in pairs], dim=1)
    value = torch.cat([kv.value.to(pairs[0].value) for kv in pairs], dim=1)
    return KV(key, value)


def _mean(tensors: list[Tensor], shares: list[float], total: float) -> Tensor:
    summed = sum(tensor.double() * share for tensor, share in zip(tensors, shares, strict=True))
    return (torch.as_tensor(summed) / total).to(tensors[0].dtype)


def _require_alike(first: Prefix, second: Prefix) -> None:
    shapes = [
        {name: [tuple(tensor.shape) for tensor in kv] for name, kv in prefix.slots.items()}
        for prefix in (first, second)
    ]
    if shapes[0] != shapes[1]:
        raise PrefixMismatchError("prefixes of different slots, lengths or widths can't be averaged")
    if first.position_offset != second.position_offset:
        raise PrefixMismatchError(
            f"prefixes of offsets {first.position_offset} and {second.position_offset} can't be averaged; "
            "use with_offset first"
        )
    if first.base.weights != second.base.weights:
        raise PrefixMismatchError("prefixes of different bases can't be averaged")
