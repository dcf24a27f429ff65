"""The kinds of prefix: one class for each, and a closed table of them.

A kind knows its tensors, how it joins attention, which bases it fits, and what it can be exported as. `Prefix.kind`
returns it; no other code compares kinds by name.

    softmax      keys and values in the tokens' own softmax: exact concatenation
    gated        keys and values in a separate softmax, added through a gate per head
    memory       no keys: a matrix per head acts on the queries; the result is added
    conditioned  softmax, after a small network has changed keys and values for the row's input
    embedding    virtual tokens among the input embeddings, for models in which they don't equal keys and values
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from foreword.errors import PrefixError, PrefixMismatchError

EMBEDDINGS = "embeddings"  # the extra tensor that holds input embeddings
NETWORK = "condition."  # the names of a conditioned prefix's extra tensors begin with it


class KV(NamedTuple):
    """Keys and values of one slot: `key [num_kv_heads, length, key_dim]`, `value [num_kv_heads, length, value_dim]`.

    Keys are stored as attention sees them, after rotary embedding.
    """

    key: Tensor
    value: Tensor

    @property
    def length(self) -> int:
        return int(self.key.shape[1])


class Gated(NamedTuple):
    """O = O_local + tanh(gate) · Attn(Q, key, value). key `[H_kv, m, d_k]`, value `[H_kv, m, d_v]`, gate `[H]`."""

    key: Tensor
    value: Tensor
    gate: Tensor

    def expected_shape(self, slot: SlotShape) -> tuple[int, ...]:
        """Return the shape that the last tensor must have on `slot`."""
        return (slot.num_heads,)


class Memory(NamedTuple):
    """O = O_local + φ(Q) · matrix, φ = elu. matrix `[H, d_k, d_v]`."""

    matrix: Tensor

    def expected_shape(self, slot: SlotShape) -> tuple[int, ...]:
        """Return the shape that the last tensor must have on `slot`."""
        return slot.num_heads, slot.key_dim, slot.value_dim


Addition = Gated | Memory
Slots = Mapping[str, KV]
Extras = Mapping[str, Tensor]


class SlotShape(Protocol):
    """What a kind has to know about an attention layer of a base."""

    @property
    def num_heads(self) -> int: ...
    @property
    def key_dim(self) -> int: ...
    @property
    def value_dim(self) -> int: ...


class Kind(ABC):
    """Properties of every prefix of one kind. `slots` and `extras` are those of a `Prefix`.

    export: what it can be exported as, in words. has_keys: its slots hold keys and values.
    has_tokens: it has virtual tokens. is_cache: it is a key/value cache, for any engine that has one.
    passes_as_cache: it can be attached through `past_key_values`. inserted: its virtual tokens stand among the input
    embeddings of every row, so rows can't be packed, and attention layers can't be chosen.
    reads_input: each row gets its own static prefix, made from the row's input (`for_input`).
    """

    name: ClassVar[str]
    export: ClassVar[str]
    has_keys: ClassVar[bool] = True
    has_tokens: ClassVar[bool] = True
    is_cache: ClassVar[bool] = False
    passes_as_cache: ClassVar[bool] = False
    inserted: ClassVar[bool] = False
    reads_input: ClassVar[bool] = False

    def check(self, slots: Slots, extras: Extras) -> None:
        """Raise `PrefixError` unless slots and extra tensors are those of this kind."""
        if bool(slots) != self.has_keys:
            raise PrefixError("a prefix needs at least one slot" if not slots else f"{self.name} has no keys")
        expected = self._extras(slots, extras)
        if expected is None:
            return
        if set(expected) != set(extras):
            unmatched = min(set(expected) ^ set(extras))
            verb = "lacks" if unmatched in expected else "has no use for"
            raise PrefixError(f"a prefix of merge {self.name!r} {verb} {unmatched}")
        for name, tensor in extras.items():
            if tensor.dim() != expected[name] or not tensor.is_floating_point():
                raise PrefixError(
                    f"{name} must be floating point of {expected[name]} dimensions, got {tuple(tensor.shape)}"
                )

    def _extras(self, slots: Slots, extras: Extras) -> dict[str, int] | None:
        """Return the required extra tensors: name → number of dimensions; None: any are allowed."""
        return None

    def length(self, slots: Slots, extras: Extras) -> int:
        """Return the number of virtual tokens of the longest slot."""
        return max((kv.length for kv in slots.values()), default=0)

    def additions(self, slots: Slots, extras: Extras) -> dict[str, Addition]:
        """Return slot name → the addition to that slot's attention."""
        return {}

    def embeddings(self, extras: Extras) -> Tensor | None:
        """Return what is inserted among the input embeddings, `[m, width]`; None: nothing."""
        return None

    def input_width(self, extras: Extras) -> tuple[str, int] | None:
        """Return name and width of the tensor that must be as wide as the base's input embeddings, or None."""
        return None

    def for_input(self, slots: Slots, extras: Extras, pooled: Tensor) -> dict[str, KV]:
        """Return the slots for one row's input, if `reads_input`. pooled: mean input embedding, `[width]`."""
        raise PrefixError(f"a prefix of merge {self.name!r} is the same for each input")

    def continues(self, start: Kind) -> bool:
        """Return True if training of this kind can start from a prefix of the kind `start`."""
        return self is start

    def require_fit(
        self, slots: Slots, extras: Extras, known: Mapping[str, SlotShape], width: int, base_name: str
    ) -> None:
        """Raise `PrefixMismatchError` unless additions and extra tensors fit a base.

        known: the slots of the base by name. width: of its input embeddings.
        """
        for name, addition in self.additions(slots, extras).items():
            expected = addition.expected_shape(known[name])
            if tuple(addition[-1].shape) != expected:
                raise PrefixMismatchError(
                    f"{name}: the prefix's {self.name} tensor is {tuple(addition[-1].shape)}, "
                    f"{base_name} needs {expected}"
                )
        named_width = self.input_width(extras)
        if named_width is not None and named_width[1] != width:
            name, read = named_width
            raise PrefixMismatchError(f"the prefix's {name} has width {read}, {base_name}'s embeddings {width}")


class SoftmaxKind(Kind):
    """Exact concatenation with the keys and values of the tokens."""

    name = "softmax"
    export = "key/value cache"
    is_cache = True
    passes_as_cache = True


class GatedKind(Kind):
    """A separate softmax, added through a gate; extras `<slot>.gate [H]`."""

    name = "gated"
    export = "no key/value cache: its gates stand outside the softmax"

    def _extras(self, slots: Slots, extras: Extras) -> dict[str, int]:
        return {f"{name}.gate": 1 for name in slots}

    def additions(self, slots: Slots, extras: Extras) -> dict[str, Addition]:
        return {name: Gated(*kv, extras[f"{name}.gate"]) for name, kv in slots.items()}


class MemoryKind(Kind):
    """Matrices that act on queries; extras `<slot>.memory [H, d_k, d_v]`."""

    name = "memory"
    export = "no key/value cache: it has no keys, its matrices act on queries"
    has_keys = False
    has_tokens = False

    def _extras(self, slots: Slots, extras: Extras) -> dict[str, int]:
        names = [name for name in extras if name.endswith(".memory")] or ["<slot>.memory"]
        return dict.fromkeys(names, 3)

    def additions(self, slots: Slots, extras: Extras) -> dict[str, Addition]:
        return {name.removesuffix(".memory"): Memory(matrix) for name, matrix in extras.items()}


class ConditionedKind(Kind):
    """Softmax, after a network has changed keys and values for the row's input; extras `condition.…`."""

    name = "conditioned"
    export = "a key/value cache for each input, none as a whole: a network reads the input"
    passes_as_cache = True
    reads_input = True

    def _extras(self, slots: Slots, extras: Extras) -> dict[str, int]:
        dimensions = {"left": 2, "inner": 2, "inner_bias": 1, "outer": 2, "outer_bias": 1}
        dimensions |= {f"right.{name}": 2 for name in slots}
        return {NETWORK + name: count for name, count in dimensions.items()}

    def input_width(self, extras: Extras) -> tuple[str, int]:
        return f"{NETWORK}inner", int(extras[f"{NETWORK}inner"].shape[1])

    def continues(self, start: Kind) -> bool:
        return self is start or start.is_cache

    def for_input(self, slots: Slots, extras: Extras, pooled: Tensor) -> dict[str, KV]:
        """Return key, value = base + left · diag(s) · right(slot), s = W₂ tanh(W₁ · norm(pooled) + b₁) + b₂ `[r]`.

        left `[m, r]`, right `[r, H_kv · (d_k + d_v)]`, W₁ `[h, width]`, W₂ `[r, h]`; differentiable.
        """
        wide = torch.promote_types(
            extras[f"{NETWORK}left"].dtype, torch.float32
        )  # also if it is stored in half precision
        network = {name.removeprefix(NETWORK): tensor.to(pooled.device, wide) for name, tensor in extras.items()}
        left = network["left"]
        normed = F.layer_norm(pooled.to(left), pooled.shape)
        hidden = torch.tanh(network["inner"] @ normed + network["inner_bias"])
        scale = network["outer"] @ hidden + network["outer_bias"]
        changed = {}
        for name, (key, value) in slots.items():
            heads, length, width = key.shape
            change = ((left * scale) @ network[f"right.{name}"])[:length].view(length, heads, -1).transpose(0, 1)
            changed[name] = KV(key + change[..., :width].to(key), value + change[..., width:].to(value))
        return changed


class EmbeddingKind(Kind):
    """Virtual tokens among the input embeddings; extras `embeddings [m, width]`."""

    name = "embedding"
    export = "input embeddings, no key/value cache: here the two are not the same"
    has_keys = False
    passes_as_cache = True
    inserted = True

    def _extras(self, slots: Slots, extras: Extras) -> dict[str, int]:
        return {EMBEDDINGS: 2}

    def length(self, slots: Slots, extras: Extras) -> int:
        return int(extras[EMBEDDINGS].shape[0])

    def embeddings(self, extras: Extras) -> Tensor:
        return extras[EMBEDDINGS]

    def input_width(self, extras: Extras) -> tuple[str, int]:
        return EMBEDDINGS, int(extras[EMBEDDINGS].shape[1])


SOFTMAX, GATED, MEMORY, CONDITIONED, EMBEDDING = (
    SoftmaxKind(),
    GatedKind(),
    MemoryKind(),
    ConditionedKind(),
    EmbeddingKind(),
)
KINDS: dict[str, Kind] = {kind.name: kind for kind in (SOFTMAX, GATED, MEMORY, CONDITIONED, EMBEDDING)}


def kind_called(name: str) -> Kind:
    """Return the kind called `name`. Raises `PrefixError` for an unknown name."""
    if name not in KINDS:
        raise PrefixError(f"merge {name!r} is not known (known: {', '.join(KINDS)})")
    return KINDS[name]


def check_shapes(slots: Slots) -> None:
    """Raise `PrefixError` for a slot whose key and value don't match in shape or are not floating point."""
    for name, (key, value) in slots.items():
        shapes = f"{tuple(key.shape)} and {tuple(value.shape)}"
        if key.dim() != 3 or value.dim() != 3:
            raise PrefixError(f"{name}: key and value must be [num_kv_heads, length, head_dim], got {shapes}")
        if key.shape[:2] != value.shape[:2]:
            raise PrefixError(
                f"{name}: key {tuple(key.shape)} and value {tuple(value.shape)} disagree in heads or length"
            )
        if not key.is_floating_point() or not value.is_floating_point():
            raise PrefixError(f"{name}: key and value must be floating point, got {key.dtype} and {value.dtype}")
