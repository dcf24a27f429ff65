"""The prefixes of one slot, one behind another, and which rows of a batch use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from foreword.attention.segments import Segments
from foreword.placing import placed
from foreword.prefix import KV


class Plan(NamedTuple):
    """order: which queries, of the rows' tokens laid one behind another, each prefix serves, prefix by prefix; None: all of
    them as they stand. segments: how many queries and keys each prefix has."""

    order: Tensor | None
    segments: Segments


@dataclass(frozen=True)
class Uses:
    """Which rows use which of several prefixes. counts: rows of each prefix; order: those rows, prefix by prefix, or None
    if that is every row in its place."""

    counts: tuple[int, ...]
    order: Tensor | None
    _plans: dict[tuple[int, tuple[int, ...]], Plan] = field(default_factory=dict, repr=False)

    def plan(self, tokens: int, lengths: tuple[int, ...]) -> Plan:
        """For rows of `tokens` queries each, and prefixes of `lengths` virtual tokens."""
        if (tokens, lengths) not in self._plans:
            segments = Segments(tuple(count * tokens for count in self.counts), lengths)
            with torch.inference_mode(False):  # it may serve gradients later
                self._plans[tokens, lengths] = Plan(_places(self.order, tokens), segments)
        return self._plans[tokens, lengths]


class Joined(NamedTuple):
    """key `[H_kv, M, d_k]`, value `[H_kv, M, d_v]`: the prefixes of `lengths` virtual tokens, one behind another."""

    uses: Uses
    lengths: tuple[int, ...]
    key: Tensor
    value: Tensor


def uses_of(groups: Sequence[Sequence[int] | None], rows: int, device: torch.device) -> Uses:
    """groups: the rows of each prefix, or None for every row; no row twice."""
    if any(places is None for places in groups):
        return Uses((rows,), None)
    lists = [places for places in groups if places is not None]
    order = [row for places in lists for row in places]
    in_place = order == list(range(rows))
    return Uses(tuple(map(len, lists)), None if in_place or not order else placed(order, device))


def join(uses: Uses, kvs: Sequence[KV]) -> Joined:
    """One prefix is used where it lies; several are laid one behind another, once."""
    key, value = kvs[0] if len(kvs) == 1 else (torch.cat(parts, 1) for parts in zip(*kvs, strict=True))
    return Joined(uses, tuple(kv.length for kv in kvs), key, value)


def take(tensor: Tensor, order: Tensor | None) -> Tensor:
    """The places `order` of `[1, H, N, …]`, in `[1, N, H, …]` memory."""
    return tensor if order is None else tensor.transpose(1, 2).index_select(1, order).transpose(1, 2)


def put(tensor: Tensor, order: Tensor | None, values: Tensor) -> Tensor:
    """`tensor` `[1, H, N, …]` with `values` at the places `order`."""
    if order is None:
        return values
    return tensor.transpose(1, 2).index_copy(1, order, values.transpose(1, 2)).transpose(1, 2)


def _places(order: Tensor | None, tokens: int) -> Tensor | None:
    if order is None or tokens == 1:
        return order
    return (order.unsqueeze(1) * tokens + torch.arange(tokens, device=order.device)).flatten()
