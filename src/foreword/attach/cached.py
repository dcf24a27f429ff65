"""The second route: a prefix in front of the cache, for models with attention code of their own.

BLOOM, Falcon, MPT, GPT-J and CodeGen don't dispatch their attention, but all of them read keys and
values from a cache. During one forward pass the stack gets a view of its cache that shows the prefix
first. The cache itself never contains the prefix, so generation, beam search and cropping see real
tokens only. If rows are padded on the left, the prefix stands right before the first real token, so
that distances (ALiBi) don't depend on padding. Shorter prefixes and rows without a prefix are filled
up with hidden keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from foreword.attach.attachment import Attachment, OnDevice
from foreword.attach.positions import tokens_of
from foreword.attach.state import PerThread
from foreword.errors import AttachError, PositionError, PrefixMismatchError, RecomputeError
from foreword.models.slots import ModelSlots
from foreword.prefix import KV, Prefix


def require(slots: ModelSlots, rows: Sequence[Prefix | None]) -> None:
    """Raise `PrefixMismatchError` for a prefix this route can't attach, `PositionError` for an offset it can't give."""
    takes_ids = slots.shifts and slots.explicit_positions
    for prefix in rows:
        if prefix is None or prefix.kind.inserted:
            continue
        if not prefix.kind.passes_as_cache:
            raise PrefixMismatchError(f"through past_key_values a prefix of merge {prefix.merge!r} can't be attached")
        missing = [slot.name for slot in slots.slots if slot.name not in prefix.slots]
        lengths = {kv.length for kv in prefix.slots.values()}
        if missing or len(lengths) > 1:
            problem = f"it has none for {missing[0]}" if missing else f"it has lengths {sorted(lengths)}"
            raise PrefixMismatchError(
                f"through past_key_values every layer needs keys and values of one length; {problem}"
            )
        if not takes_ids and prefix.position_offset != prefix.length:
            raise PositionError(
                f"this model counts positions by the cache, so the offset must be the prefix's length {prefix.length}, "
                f"not {prefix.position_offset}"
            )


class _Caches:
    """The caches of the forward pass that a thread is in. view: what the stack gets; own: the caller's."""

    def __init__(self) -> None:
        self.view: Cache | None = None
        self.own: Cache | None = None


class CacheView:
    """Shows one stack the prefix in front of its cache, for one forward pass."""

    def __init__(self, slots: ModelSlots) -> None:
        self._names = [slot.name for slot in slots.slots]
        self._caches = PerThread(_Caches)

    def put_prefix(self, module: nn.Module, arguments: dict[str, Any], attachment: Attachment) -> None:
        """Replace cache and mask in the stack's `arguments` by a view and a mask that show the prefix first."""
        caches = self._caches.of
        caches.view = caches.own = None
        cache = arguments.get("past_key_values")
        _refuse(module, cache)
        _refuse_packing(arguments)
        if cache is None and _wants_cache(module, arguments):
            cache = DynamicCache(config=module.config)
        tokens = tokens_of(arguments)
        if tokens is None:
            raise AttachError(f"{type(module).__name__} was called with neither input_ids nor inputs_embeds")
        rows = attachment.rows.expand(tokens.shape[0])
        lengths = [0 if row is None else _length(attachment.prefixes[row]) for row in rows]
        if not any(lengths):
            return
        order, mask = _layout(arguments.get("attention_mask"), lengths, tokens, cache)
        blocks = _Blocks(attachment.prefixes, rows, max(lengths), self._names)
        view = Cache(layers=[_Layer(cache, number, blocks, order) for number in range(len(self._names))])
        arguments |= {"past_key_values": view, "attention_mask": mask}
        caches.view, caches.own = view, cache

    def put_back(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook: replace the view in `output` by the caller's own cache. None: there is none in it."""
        caches = self._caches.of
        view, cache = caches.view, caches.own
        caches.view = caches.own = None
        if view is None:
            return None
        if isinstance(output, tuple):
            return tuple(cache if item is view else item for item in output if item is not view or cache is not None)
        if output.get("past_key_values") is view:
            output["past_key_values"] = cache
        return output


def capture(model: nn.Module, slots: ModelSlots, inputs: dict[str, Any]) -> dict[str, KV]:
    """Run `model` with an empty cache and return the keys and values of every slot."""
    cache = DynamicCache(config=model.config)
    model(**inputs, past_key_values=cache, use_cache=True)
    return {slot.name: KV(layer.keys, layer.values) for slot, layer in zip(slots.slots, cache.layers, strict=True)}


def _length(prefix: OnDevice) -> int:
    """Return the number of virtual tokens in front of the cache; `require` makes it the same in every slot."""
    return next(iter(prefix.slots.values())).length if prefix.slots else 0


class _Blocks:
    """The prefixes of a batch as one block per slot: key and value `[B, H_kv, longest, d]`, padded at the front."""

    def __init__(self, prefixes: list[OnDevice], rows: Sequence[int | None], longest: int, names: list[str]) -> None:
        self._prefixes, self._rows, self._names = prefixes, rows, names
        self.longest = longest

    def of(self, number: int, index: int) -> Tensor:
        """Return the keys (index 0) or values (index 1) of slot `number`."""
        name = self._names[number]
        like = next(prefix.slots[name][index] for prefix in self._prefixes if prefix.slots)
        empty = like.new_zeros(like.shape[0], self.longest, like.shape[2])
        filled = [
            F.pad(prefix.slots[name][index], (0, 0, self.longest - _length(prefix), 0)) if prefix.slots else empty
            for prefix in self._prefixes
        ]
        if all(row == self._rows[0] for row in self._rows) and self._rows[0] is not None:
            return filled[self._rows[0]].unsqueeze(0).expand(len(self._rows), -1, -1, -1)
        return torch.stack([empty if row is None else filled[row] for row in self._rows])


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of the view: it returns what the real cache returns, with the prefix before the first real token."""

    is_sliding = False

    def __init__(self, cache: Cache | None, number: int, blocks: _Blocks, order: Tensor | None) -> None:
        super().__init__()
        self._cache, self._number, self._blocks, self._order = cache, number, blocks, order

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self._cache is not None:
            key_states, value_states = self._cache.update(key_states, value_states, self._number, *args, **kwargs)
        return self._with_prefix(key_states, 0), self._with_prefix(value_states, 1)

    def _with_prefix(self, states: Tensor, index: int) -> Tensor:
        joined = torch.cat([self._blocks.of(self._number, index).to(states), states], dim=2)
        if self._order is None:
            return joined
        order = self._order[:, None, :, None].expand(-1, joined.shape[1], -1, joined.shape[3])
        return joined.gather(2, order)

    def get_seq_length(self) -> int:
        past = 0 if self._cache is None else int(self._cache.get_seq_length(self._number))
        return past + self._blocks.longest

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the view stores nothing."""


def _layout(
    mask: Tensor | None, lengths: list[int], tokens: Tensor, cache: Cache | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return (order of the joined keys `[B, m + t]`, or None if prefixes come first; mask `[B, m + t]`, or None).

    m is the longest prefix's length, t the tokens in `mask`.
    """
    longest, equal_lengths = max(lengths), len(set(lengths)) == 1
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        raise AttachError("through past_key_values only a 2-D attention mask is supported; leave the 4-D one out")
    if mask is None and equal_lengths:
        return None, None
    if mask is None:
        past = 0 if cache is None else int(cache.get_seq_length())
        mask = torch.ones(tokens.shape[0], past + tokens.shape[1], dtype=torch.long, device=tokens.device)
    visible = torch.arange(longest, device=mask.device) >= longest - torch.tensor(lengths, device=mask.device)[:, None]
    joined = torch.cat([visible.to(mask.dtype), mask], dim=1)
    pads = (mask.long().cumsum(-1) == 0).sum(-1, keepdim=True)
    if not bool(pads.any()):
        return None, joined
    place = torch.arange(joined.shape[1], device=mask.device)[None]
    order = torch.where(place < pads, place + longest, torch.where(place < pads + longest, place - pads, place))
    return order, joined.gather(1, order)


def _refuse(module: nn.Module, cache: Any) -> None:
    if any(getattr(layer, "gradient_checkpointing", False) and layer.training for layer in module.modules()):
        raise RecomputeError(
            f"{type(module).__name__} takes its prefix through past_key_values, which activation checkpointing drops; "
            "train it without"
        )
    if cache is not None and getattr(cache, "is_compileable", False):
        raise AttachError(
            f"{type(module).__name__} takes its prefix through past_key_values, in front of a dynamic cache; "
            f"{type(cache).__name__} is not one"
        )


def _refuse_packing(arguments: dict[str, Any]) -> None:
    """Raise `AttachError` for several texts in one row. With a cache, models don't read them from `position_ids`."""
    positions = arguments.get("position_ids")
    if arguments.get("attention_mask") is None and positions is not None and bool((positions.diff() != 1).any()):
        raise AttachError("through past_key_values a row holds one text; packed position_ids are not supported")


def _wants_cache(module: Any, arguments: dict[str, Any]) -> bool:
    use_cache = arguments.get("use_cache")
    return bool(getattr(module.config, "use_cache", False) if use_cache is None else use_cache)
