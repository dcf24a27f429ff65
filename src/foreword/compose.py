"""Putting trained prefixes together: one behind the other, or their mean.

What is known: neither was trained for it. Concatenation is exact for two texts that don't see each other, but two
trained prefixes compete for attention, and a task's answer often gets worse; averaging makes sense for prefixes that
started from the same initialisation. Measure before use, or go on training from the result (`init="prefix"`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from foreword.errors import PositionError, PrefixMismatchError
from foreword.models.architectures import architecture_of
from foreword.models.base import Base
from foreword.prefix import KV, Prefix


def concat(first: Prefix, second: Prefix, base: Base) -> Prefix:
    """`first`, then `second`, then the real tokens: their keys and values one behind the other.

    With rotary positions the second's keys are rotated, so that it stands behind the first as text would, and the
    offset is the sum. Where a base takes no positions from outside (encoders, T5, BART) both have offset 0 and so has
    the result; ALiBi counts by itself. A slot that only one of them has keeps that one's.
    Raises `PrefixMismatchError` unless both join attention by softmax, `PositionError` for learned positions, whose keys can't be moved, and where an offset can't be changed.
    """
    for prefix in (first, second):
        _require_softmax(prefix)
        base.require_fit(prefix)
    behind, offset = second, first.position_offset + second.position_offset
    if first.position_offset and second.position_offset:
        positions = architecture_of(base.model).positions
        if positions == "learned":
            raise PositionError(
                f"{base.name} has learned positions; the second prefix's keys can't be moved behind the first's"
            )
        if positions == "rotary" and base.model_slots.explicit_positions:
            behind = second.with_offset(offset, base)
    names = [slot.name for slot in base.slots if slot.name in first.slots or slot.name in second.slots]
    slots = {name: _joined(first.slots.get(name), behind.slots.get(name)) for name in names}
    record = {"concat": [first.method, second.method]}
    return Prefix(slots, offset, base.fingerprint, method="concat", record=record)


def average(prefixes: Sequence[Prefix], weights: Sequence[float] | None = None) -> Prefix:
    """The weighted mean of prefixes of one base, shape and offset. weights: default equal; divided by their sum.

    Raises `PrefixMismatchError` if they don't go together.
    """
    if not prefixes:
        raise PrefixMismatchError("average got no prefixes")
    shares = [1.0] * len(prefixes) if weights is None else [float(weight) for weight in weights]
    if len(shares) != len(prefixes) or not sum(shares):
        raise PrefixMismatchError(
            f"{len(prefixes)} prefixes need as many weights with a sum other than 0, not {shares}"
        )
    first = prefixes[0]
    _require_softmax(first)
    for other in prefixes[1:]:
        _require_softmax(other)
        _require_alike(first, other)
    total = sum(shares)
    slots = {
        name: KV(*(_mean([prefix.slots[name][part] for prefix in prefixes], shares, total) for part in (0, 1)))
        for name in first.slots
    }
    record = {"average": [prefix.method for prefix in prefixes], "weights": [share / total for share in shares]}
    return replace(first, slots=slots, extras={}, method="average", record=record)


def _require_softmax(prefix: Prefix) -> None:
    if prefix.merge != "softmax":
        raise PrefixMismatchError(
            f"a prefix of merge {prefix.merge!r} is more than keys and values; only those of softmax go together"
        )


def _joined(one: KV | None, other: KV | None) -> KV:
    parts = [kv for kv in (one, other) if kv is not None]
    key = torch.cat([kv.key.to(parts[0].key) for kv in parts], dim=1)
    value = torch.cat([kv.value.to(parts[0].value) for kv in parts], dim=1)
    return KV(key, value)


def _mean(tensors: list[torch.Tensor], shares: list[float], total: float) -> torch.Tensor:
    summed = sum(tensor.double() * share for tensor, share in zip(tensors, shares, strict=True))
    return (torch.as_tensor(summed) / total).to(tensors[0].dtype)


def _require_alike(first: Prefix, other: Prefix) -> None:
    shapes = [
        {name: [tuple(part.shape) for part in kv] for name, kv in prefix.slots.items()} for prefix in (first, other)
    ]
    if shapes[0] != shapes[1]:
        raise PrefixMismatchError("prefixes of different slots, lengths or widths can't be averaged")
    if first.position_offset != other.position_offset:
        raise PrefixMismatchError(
            f"prefixes of offsets {first.position_offset} and {other.position_offset} can't be averaged; use with_offset first"
        )
    if first.base.weights != other.base.weights:
        raise PrefixMismatchError("prefixes of different bases can't be averaged")
