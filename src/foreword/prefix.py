"""`Prefix`: the one value that training produces and everything else consumes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from foreword.errors import PrefixError
from foreword.merges import MERGES, Addition, Gated, Memory

if TYPE_CHECKING:
    from foreword.encoding import Encoded
    from foreword.models import Base

EMBEDDINGS = "embeddings"


class KV(NamedTuple):
    """Keys and values of one slot: `key [num_kv_heads, length, key_dim]`, `value [..., value_dim]`.

    Keys are stored as attention sees them, that is after rotary embedding.
    """

    key: Tensor
    value: Tensor

    @property
    def length(self) -> int:
        return int(self.key.shape[1])


@dataclass(frozen=True)
class Fingerprint:
    """Which base a prefix belongs to.

    `weights` is a hash of the base's stored checkpoint, taken before any cast, so it is the same
    for a float32 and a bfloat16 load; None where it is unknown. `quantisation` names what the
    weights were dequantised from, for instance "Q4_1"; None for original weights.
    """

    architecture: str
    model_type: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    weights: str | None = None
    source: str | None = None
    quantisation: str | None = None

    @property
    def shape(self) -> dict[str, Any]:
        """The part that must be equal for a prefix to fit."""
        names = ("model_type", "hidden_size", "num_layers", "vocab_size")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, eq=False)
class Prefix:
    """A trained prefix: per attention slot a few key/value vectors that stand before the tokens.

    slots: slot name (`decoder.0`, …) → `KV`; lengths may differ between slots. Empty where the merge has no keys.
    position_offset: how far the real tokens' positions are shifted (≥ 0).
    base: fingerprint of the base it belongs to.
    merge: how it joins attention (`merges.MERGES`): "softmax" is exact concatenation; "gated" and "memory" add to the
    tokens' own attention; "conditioned" is softmax after a change that depends on the row's input; "embedding" is
    inserted among the input embeddings.
    extras: what is more than keys and values, by name: `<slot>.gate [H]` (gated), `<slot>.memory [H, d_k, d_v]`
    (memory), `condition.…` (conditioned), `embeddings [m, hidden_size]` (embedding, and prompts that became keys).
    method, record: how it was made; free of meaning for attention.

    Raises `PrefixError` if shapes disagree, a tensor is not floating point, or an extra tensor is missing.
    """

    slots: Mapping[str, KV]
    position_offset: int
    base: Fingerprint
    merge: str = "softmax"
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    method: str = "given"
    record: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.position_offset < 0:
            raise PrefixError(f"position_offset must be 0 or more, not {self.position_offset}")
        if self.merge not in MERGES:
            raise PrefixError(f"merge {self.merge!r} is not known (known: {', '.join(MERGES)})")
        if bool(self.slots) != MERGES[self.merge].keys:
            raise PrefixError("a prefix needs at least one slot" if not self.slots else f"{self.merge} has no keys")
        _check_extras(self)
        for name, kv in self.slots.items():
            _check_shapes(name, kv)
        object.__setattr__(self, "slots", MappingProxyType(dict(self.slots)))
        object.__setattr__(self, "extras", MappingProxyType(dict(self.extras)))
        object.__setattr__(self, "record", MappingProxyType(dict(self.record)))

    @property
    def length(self) -> int:
        """Virtual tokens of the longest slot, or of the inserted prompt; 0 for a memory."""
        if self.merge == "embedding":
            return int(self.extras[EMBEDDINGS].shape[0])
        return max((kv.length for kv in self.slots.values()), default=0)

    @property
    def additions(self) -> dict[str, Addition]:
        """Slot name → what is added to that slot's attention; empty unless gated or memory."""
        if self.merge == "gated":
            return {name: Gated(*kv, self.extras[f"{name}.gate"]) for name, kv in self.slots.items()}
        if self.merge == "memory":
            return {name.removesuffix(".memory"): Memory(matrix) for name, matrix in self.extras.items()}
        return {}

    @property
    def num_parameters(self) -> int:
        """Numbers stored: 2 · Σ_slots num_kv_heads · length · head_dim where key and value widths agree."""
        return sum(tensor.numel() for _, tensor in self.tensors())

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for _, tensor in self.tensors())

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names as stored (`decoder.0.key`, `decoder.0.value`, `extra.…`) with their tensors."""
        for name, kv in self.slots.items():
            yield f"{name}.key", kv.key
            yield f"{name}.value", kv.value
        for name, tensor in self.extras.items():
            yield f"extra.{name}", tensor

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Prefix:
        """A copy with every tensor cast or moved. Raises `PrefixError` if a value overflows `dtype`."""
        moved = {name: KV(kv.key.to(device, dtype), kv.value.to(device, dtype)) for name, kv in self.slots.items()}
        extras = {name: tensor.to(device, dtype) for name, tensor in self.extras.items()}
        result = replace(self, slots=moved, extras=extras)
        result.require_finite()
        return result

    def with_offset(self, offset: int, base: Base) -> Prefix:
        """This prefix for real tokens that stand `offset` positions on, its keys rotated to match.

        Exact for rotary positions with static frequencies. Raises `PositionError` elsewhere.
        """
        from foreword.models.rope import with_offset

        return with_offset(self, offset, base)

    def require_finite(self) -> None:
        """Raise `PrefixError` naming the first tensor that holds NaN or infinity."""
        for name, tensor in self.tensors():
            if not bool(torch.isfinite(tensor).all()):
                raise PrefixError(f"{name} holds NaN or infinity")

    def with_record(self, method: str, record: Mapping[str, Any]) -> Prefix:
        return replace(self, method=method, record=record)

    def save(self, path: str | Path, encoding: Mapping[str, Encoded] | None = None) -> Path:
        """Write the folder `path` (prefix.safetensors, manifest.json), atomically. Returns its path.

        encoding: tensor name → the stored form that decodes to exactly that tensor; others are stored plain.
        Raises `PrefixError` for non-finite tensors and `PrefixFormatError` if `path` is a file or a
        folder that holds something other than a prefix, `StorageError` if the disk is full; what was there stays.
        """
        from foreword.format import save_prefix

        return save_prefix(self, Path(path), encoding)

    @classmethod
    def load(cls, path: str | Path, *, device: str | torch.device = "cpu") -> Prefix:
        """Read a folder written by `save`. Names, shapes, dtypes, finiteness and digest are checked
        against the manifest first. Raises `PrefixFormatError`, saying what differs.
        """
        from foreword.format import load_prefix

        return load_prefix(Path(path), device=device)

    @classmethod
    def from_kv(
        cls,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        base: Base,
        *,
        position_offset: int | None = None,
    ) -> Prefix:
        """A prefix from given keys and values, one pair per slot of `base` in order.

        keys, values: lists of `[num_kv_heads, length, head_dim]`; keys after rotary embedding.
        position_offset: default is the length for decoders, the KV-cache convention, and 0 for others.
        Raises `PrefixMismatchError` if count or shapes are not those of `base`.
        """
        from foreword.errors import PrefixMismatchError

        if len(keys) != len(base.slots) or len(values) != len(base.slots):
            raise PrefixMismatchError(
                f"got {len(keys)} keys and {len(values)} values, but {base.name} has {len(base.slots)} slots"
            )
        slots = {slot.name: KV(key, value) for slot, key, value in zip(base.slots, keys, values, strict=True)}
        longest = max(int(key.shape[1]) if key.dim() == 3 else 0 for key in keys)
        offset = base.default_offset(longest) if position_offset is None else position_offset
        prefix = cls(slots, offset, base.fingerprint, method="kv")
        base.require_fit(prefix)
        prefix.require_finite()
        return prefix

    @classmethod
    def from_text(cls, text: str, base: Base, *, length: int | None = None) -> Prefix:
        """The keys and values that `base` computes for `text`: the text in front, without its cost.

        length: exactly so many virtual tokens, the text cut or repeated. No special tokens are added.
        Raises `PrefixError` if the text has no tokens.
        """
        from foreword.init.text import text_prefix

        return text_prefix(text, base, length=length)


def _check_extras(prefix: Prefix) -> None:
    """Raise `PrefixError` unless the extra tensors are those of the merge."""
    if prefix.merge == "gated":
        wanted, dims = {f"{name}.gate" for name in prefix.slots}, 1
    elif prefix.merge == "memory":
        wanted, dims = {name for name in prefix.extras if name.endswith(".memory")} or {"<slot>.memory"}, 3
    elif prefix.merge == "embedding":
        wanted, dims = {EMBEDDINGS}, 2
    elif prefix.merge == "conditioned":
        parts = ("left", "inner", "inner_bias", "outer", "outer_bias", *(f"right.{name}" for name in prefix.slots))
        wanted, dims = {f"condition.{part}" for part in parts}, 2
    else:
        return
    if wanted != set(prefix.extras):
        odd = min(wanted ^ set(prefix.extras))
        raise PrefixError(f"a prefix of merge {prefix.merge!r} {'lacks' if odd in wanted else 'has no use for'} {odd}")
    for name, tensor in prefix.extras.items():
        if tensor.dim() != (1 if name.endswith("_bias") else dims) or not tensor.is_floating_point():
            raise PrefixError(f"{name} must be floating point of {dims} dimensions, got {tuple(tensor.shape)}")


def _check_shapes(name: str, kv: KV) -> None:
    key, value = kv
    if key.dim() != 3 or value.dim() != 3:
        raise PrefixError(
            f"{name}: key and value must be [num_kv_heads, length, head_dim], got {tuple(key.shape)} and {tuple(value.shape)}"
        )
    if key.shape[:2] != value.shape[:2]:
        raise PrefixError(f"{name}: key {tuple(key.shape)} and value {tuple(value.shape)} disagree in heads or length")
    if not key.is_floating_point() or not value.is_floating_point():
        raise PrefixError(f"{name}: key and value must be floating point, got {key.dtype} and {value.dtype}")
