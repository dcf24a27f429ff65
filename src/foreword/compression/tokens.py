"""Fewer virtual tokens: those with least attention are dropped, or merged into the others.

Every key/value head of every slot keeps its own tokens with most attention, the same number in each. This is possible
because attention doesn't depend on the order of keys, and tokens of the same number in two layers are not related.
Keys are stored after rotary embedding and keep the positions at which they were trained. So `position_offset` is kept
too: real tokens keep their distance to the remaining keys. The offset is then larger than the length, which is not
possible for models that count positions by their cache (`require_tokens`).
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

_TINY = 1e-12  # added to each mass, so that the mean of tokens without mass is defined; far below any other mass


def drop(prefix: Prefix, mass: Mapping[str, Tensor], share: Fraction) -> Prefix:
    """Keep the `share` of each slot's tokens (rounded, at least one) with most `mass`.

    mass: slot → `[num_kv_heads, length]`. The result is exact for a query that gives dropped tokens no attention. For
    other queries their attention goes to all other tokens.
    """
    return _shorter(prefix, {name: _drop(kv, kept_tokens(mass[name], share)) for name, kv in prefix.slots.items()})


def merge(prefix: Prefix, mass: Mapping[str, Tensor], share: Fraction) -> Prefix:
    """Like `drop`, but merge each dropped token into the kept token of its head with the most similar key (cosine).

    Keys and values of merged tokens are their mean, weighted by mass. Wan et al. 2024 ("D2O") merge tokens of a cache
    in this way. The result is not exact even for k equal tokens: together they had k times the mass of one. One key
    would need a score higher by log k (the "proportional attention" of Bolya et al. 2023, §3), which keys and values
    can't give for every query.
    """
    slots = {name: _merge(kv, mass[name], kept_tokens(mass[name], share)) for name, kv in prefix.slots.items()}
    return _shorter(prefix, slots)


def kept_tokens(mass: Tensor, share: Fraction) -> Tensor:
    """Return the ascending indices `[num_kv_heads, k]` of each head's tokens with most mass; of equals the first."""
    length = mass.shape[1]
    count = min(length, max(1, round(length * share)))
    return mass.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values


def require_tokens(base: Base, prefix: Prefix) -> None:
    """Raise `PositionError` or `CompressionError` if `prefix` of `base` can't lose tokens."""
    slots = base.model_slots
    if slots.biased and prefix.position_offset:
        raise PositionError(
            f"in {base.name} a prefix with a position_offset has a place for each key, which the next one would take; "
            "choose svd or int8, which keep every token"
        )
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
    return KV(*(_pick(tensor, kept) for tensor in kv))


def _merge(kv: KV, mass: Tensor, kept: Tensor) -> KV:
    heads, count = kept.shape
    if not count:
        return kv
    key = F.normalize(kv.key.double(), dim=-1)
    target = (key @ _pick(key, kept).transpose(1, 2)).argmax(-1)  # [heads, length] → 0…k−1
    target.scatter_(1, kept, torch.arange(count).expand(heads, -1))
    weights = F.one_hot(target, count).double() * (mass + _TINY)[..., None]  # [heads, length, k]
    weights = (weights / weights.sum(1, keepdim=True)).transpose(1, 2)
    return KV(*((weights @ tensor.double()).to(tensor.dtype) for tensor in kv))


def _pick(tensor: Tensor, index: Tensor) -> Tensor:
    """Return the tokens `index` `[heads, k]` of `[heads, m, d]`, `[heads, k, d]`."""
    return tensor.gather(1, index[..., None].expand(-1, -1, tensor.shape[-1]))


def _shorter(prefix: Prefix, slots: Mapping[str, KV]) -> Prefix:
    """Return `prefix` with other slots and without extra tensors, which belong to the former tokens."""
    return replace(prefix, slots=slots, extras={})
