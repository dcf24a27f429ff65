"""How a prefix joins attention: a closed table. `Prefix.merge` names an entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Merge:
    """keys: it has keys and values in its slots. export: what the stored prefix can be handed on as.

    is_cache: it is a key/value cache, for any engine that has one.
    """

    keys: bool
    export: str
    is_cache: bool = False


MERGES = {
    "softmax": Merge(True, "key/value cache", is_cache=True),
    "gated": Merge(True, "no key/value cache: its gates stand outside the softmax"),
    "memory": Merge(False, "no key/value cache: it has no keys, its matrices act on queries"),
    "conditioned": Merge(True, "a key/value cache for each input, none as a whole: a network reads the input"),
    "embedding": Merge(False, "input embeddings, no key/value cache: here the two are not the same"),
}


class Gated(NamedTuple):
    """O = O_local + tanh(gate) · Attn(Q, key, value). key `[H_kv, m, d_k]`, value `[H_kv, m, d_v]`, gate `[H]`."""

    key: Tensor
    value: Tensor
    gate: Tensor


class Memory(NamedTuple):
    """O = O_local + φ(Q) · matrix, φ = elu. matrix `[H, d_k, d_v]`."""

    matrix: Tensor


Addition = Gated | Memory
