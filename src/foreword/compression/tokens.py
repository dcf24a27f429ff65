"""Fewer virtual tokens: the least attended are dropped, or merged into what is kept.

Every key/value head of every slot keeps its own most attended tokens, all of them equally many: attention doesn't ask
in which order keys stand, and what a token of one layer learnt has no tie to the token of that number in another.
Keys are stored after rotary embedding and keep the positions they were trained at, and so must `position_offset`: real
tokens stand where they stood, at a distance that the remaining keys know. The prefix then has an offset larger than its
length, which models that count positions by their cache can't take (`require_tokens`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional as F

from foreword.base import Base
from foreword.errors import CompressionError, PositionError
from foreword.prefix import KV, Prefix

_NOTHING = 1e-12  # far below any mass that counts; keeps the mean of tokens without mass defined


def drop(prefix: Prefix, mass: Mapping[str, Tensor], share: Fraction) -> Prefix:
    """Keep `share` of each slot's tokens (rounded, at least one), by `mass` (slot → `[num_kv_heads, length]`).

    Exact for a query that gives what is dropped no attention; elsewhere the rest takes up its share.
    """
    return _shorter(prefix, {name: _drop(kv, kept_tokens(mass[name], share)) for name, kv in prefix.slots.items()})


def merge(prefix: Prefix, mass: Mapping[str, Tensor], share: Fraction) -> Prefix:
    """As `drop`, but each dropped token joins the kept one of its head whose key is most like its own (cosine); keys
    and values of what has joined become their mean, weighted by mass. Wan et al. 2024 ("D2O") merge so in a cache.

    Not exact even for k tokens alike: together they had k times one's mass. One key has it only if its score is
    raised by log k (the "proportional attention" of Bolya et al. 2023, §3), which keys and values alone can't express
    for every query.
    """
    slots = {name: _merge(kv, mass[name], kept_tokens(mass[name], share)) for name, kv in prefix.slots.items()}
    return _shorter(prefix, slots)


def kept_tokens(mass: Tensor, share: Fraction) -> Tensor:
    """Indices `[num_kv_heads, k]`, ascending, of each head's most attended tokens; equal ones: the first."""
    length = mass.shape[1]
    count = min(length, max(1, round(length * share)))
    return mass.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values


def require_tokens(base: Base) -> None:
    """Raise `PositionError` or `CompressionError` where a prefix of `base` can't lose tokens."""
    slots = base.model_slots
    if slots.route != "cache":
        return
    advice = "choose svd or int8, which keep every token"
    if not (slots.shifts and slots.explicit_positions):
        raise PositionError(
            f"{base.name} counts positions by its cache, so a prefix's offset must be its length; tokens can't be "
            f"dropped or merged, {advice}"
        )
    raise CompressionError(
        f"{base.name} has attention code of its own, which doesn't show how much its queries attend to; {advice}"
    )


def _drop(kv: KV, kept: Tensor) -> KV:
    return KV(*(_pick(part, kept) for part in kv))


def _merge(kv: KV, mass: Tensor, kept: Tensor) -> KV:
    heads, count = kept.shape
    if not count:
        return kv
    key = F.normalize(kv.key.double(), dim=-1)
    joins = (key @ _pick(key, kept).transpose(1, 2)).argmax(-1)  # [heads, length] → 0…k−1
    joins.scatter_(1, kept, torch.arange(count).expand(heads, -1))
    weights = F.one_hot(joins, count).double() * (mass + _NOTHING)[..., None]  # [heads, length, k]
    weights = (weights / weights.sum(1, keepdim=True)).transpose(1, 2)
    return KV(*((weights @ part.double()).to(part.dtype) for part in kv))


def _pick(tensor: Tensor, index: Tensor) -> Tensor:
    """`[heads, m, d]` at `index` `[heads, k]` → `[heads, k, d]`."""
    return tensor.gather(1, index[..., None].expand(-1, -1, tensor.shape[-1]))


def _shorter(prefix: Prefix, slots: Mapping[str, KV]) -> Prefix:
    """Extra tensors go: they belong to the tokens there were."""
    return replace(prefix, slots=slots, extras={})
