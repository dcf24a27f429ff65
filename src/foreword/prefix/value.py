"""`Prefix`: the one value that training produces and all other code uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from foreword.errors import PrefixError, PrefixFormatError
from foreword.prefix import described, stored
from foreword.prefix.encoding import Encoded
from foreword.prefix.kinds import KV, SOFTMAX, Addition, Kind, check_shapes, kind_called
from foreword.prefix.places import located
from foreword.sealing import note_old_format
from foreword.shown import Shown

FURTHEST = 2**31 - 1  # the largest position offset


class Composer(Protocol):
    """A base model that can make prefixes from texts and tensors, such as `foreword.Base`."""

    def prefix_from_text(self, text: str, *, length: int | None = None) -> Prefix: ...
    def prefix_from_kv(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], *, position_offset: int | None = None
    ) -> Prefix: ...
    def prefix_with_offset(self, prefix: Prefix, offset: int) -> Prefix: ...
    def prefix_to_cache(self, prefix: Prefix, *, batch_size: int = 1) -> Any: ...


@dataclass(frozen=True)
class Fingerprint:
    """Which base a prefix belongs to.

    weights: a hash of the base's stored checkpoint, taken before any cast, so that it is the same
    for a float32 and a bfloat16 load; None if it is unknown. quantisation: the form that the
    weights were dequantised from, for instance "Q4_1"; None for original weights. support: "verified at load" if the
    architecture is outside the table and was tried when the base was loaded; None for an architecture of the table.
    """

    architecture: str
    model_type: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    weights: str | None = None
    source: str | None = None
    quantisation: str | None = None
    support: str | None = None

    @property
    def shape(self) -> dict[str, Any]:
        """The fields that must be equal for a prefix to fit."""
        names = ("model_type", "hidden_size", "num_layers", "vocab_size")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_manifest(cls, values: Mapping[str, Any], origin: str) -> Fingerprint:
        """Make the fingerprint that a manifest holds. Fields that a newer version has added are ignored.

        origin: the file, for errors. Raises `PrefixFormatError`.
        """
        texts, numbers = ("architecture", "model_type"), ("hidden_size", "num_layers", "vocab_size")
        for name in (*texts, *numbers):
            expected = str if name in texts else int
            value = values.get(name)
            if type(value) is not expected or (type(value) is int and not 0 <= value <= FURTHEST):
                raise PrefixFormatError(f"{origin}: base.{name} must be a {expected.__name__}, got {value!r:.60}")
        for name in ("weights", "source", "quantisation", "support"):
            if not isinstance(values.get(name), str | None):
                raise PrefixFormatError(f"{origin}: base.{name} must be text or null")
        return cls(**{item.name: values[item.name] for item in fields(cls) if item.name in values})


@dataclass(frozen=True, eq=False, repr=False)
class Prefix(Shown):
    """A trained prefix: for each attention slot a few key/value vectors that stand before the tokens.

    slots: slot name (`decoder.0`, …) → `KV`; lengths can differ between slots. Empty if the kind has no keys.
    position_offset: how far the real tokens' positions are shifted (≥ 0).
    base: fingerprint of the base it belongs to.
    merge: the name of its kind (`kinds.KINDS`), which says how it joins attention: "softmax" is exact concatenation;
    "gated" and "memory" add to the tokens' own attention; "conditioned" is softmax after a change that depends on the
    row's input; "embedding" is inserted among the input embeddings.
    extras: tensors other than keys and values, by name: `<slot>.gate [H]` (gated), `<slot>.memory [H, d_k, d_v]`
    (memory), `condition.…` (conditioned), `embeddings [m, hidden_size]` (embedding, and prompts that became keys).
    method, record: how it was made; attention doesn't use them.
    Raises `PrefixError` if shapes disagree, a tensor is not floating point, an extra tensor is missing, or the offset
    is no integer from 0 to 2³¹ − 1.
    """

    slots: Mapping[str, KV]
    position_offset: int
    base: Fingerprint
    merge: str = SOFTMAX.name
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    method: str = "given"
    record: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        offset = self.position_offset
        if not isinstance(offset, int) or isinstance(offset, bool) or not 0 <= offset <= FURTHEST:
            raise PrefixError(f"position_offset must be an integer from 0 to {FURTHEST}, not {offset!r:.40}")
        self.kind.check(self.slots, self.extras)
        check_shapes(self.slots)
        for name, tensor in self.extras.items():
            if not tensor.is_floating_point():
                raise PrefixError(f"{name} must be floating point, got {tensor.dtype}")
        for name in ("slots", "extras", "record"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    _shown = described.shown

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy as plain values; a mapping proxy can't be pickled."""
        return Prefix, tuple(
            dict(value) if isinstance(value := getattr(self, item.name), Mapping) else value for item in fields(self)
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Prefix:
        """Copy the tensors, too. Raises `PrefixError` for tensors that a computation is still using."""
        for name, tensor in self.tensors():
            if not tensor.is_leaf:
                raise PrefixError(f"{name} is the result of a computation with gradients; detach it before copying")
        function, values = self.__reduce__()
        copy: Prefix = function(*deepcopy(values, memo))
        return copy

    @property
    def kind(self) -> Kind:
        """Its kind: how it joins attention, which bases it fits and what it can be exported as."""
        return kind_called(self.merge)

    @property
    def length(self) -> int:
        """The number of virtual tokens of the longest slot, or of the inserted prompt; 0 for a memory."""
        return self.kind.length(self.slots, self.extras)

    @property
    def additions(self) -> dict[str, Addition]:
        """Slot name → the addition to that slot's attention; empty unless gated or memory."""
        return self.kind.additions(self.slots, self.extras)

    @property
    def embeddings(self) -> Tensor | None:
        """The embeddings that are inserted among the input embeddings, `[m, width]`; None: nothing is inserted."""
        return self.kind.embeddings(self.extras)

    @property
    def num_parameters(self) -> int:
        """The count of stored numbers: 2 · Σ_slots num_kv_heads · length · head_dim if key and value widths agree."""
        return sum(tensor.numel() for _, tensor in self.tensors())

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for _, tensor in self.tensors())

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the stored names (`decoder.0.key`, `decoder.0.value`, `extra.…`) with their tensors."""
        for name, kv in self.slots.items():
            yield f"{name}.key", kv.key
            yield f"{name}.value", kv.value
        for name, tensor in self.extras.items():
            yield f"extra.{name}", tensor

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Prefix:
        """Return a copy with every tensor cast or moved. Raises `PrefixError` if a value overflows `dtype`."""
        slots = {name: KV(kv.key.to(device, dtype), kv.value.to(device, dtype)) for name, kv in self.slots.items()}
        extras = {name: tensor.to(device, dtype) for name, tensor in self.extras.items()}
        moved = replace(self, slots=slots, extras=extras)
        moved.require_finite()
        return moved

    def require_finite(self) -> None:
        """Raise `PrefixError`, which names the first tensor with NaN or infinity."""
        for name, tensor in self.tensors():
            if not bool(torch.isfinite(tensor).all()):
                raise PrefixError(f"{name} holds NaN or infinity")

    def with_record(self, method: str, record: Mapping[str, Any]) -> Prefix:
        """Return a copy with another method and record."""
        return replace(self, method=method, record=record)

    def for_input(self, pooled: Tensor) -> Prefix:
        """Return the static prefix of a conditioned prefix for one input. pooled: mean input embedding, `[width]`.

        Differentiable. Raises `PrefixError` for a prefix that is the same for each input.
        """
        slots = self.kind.for_input(self.slots, self.extras, pooled)
        return replace(self, slots=slots, merge=SOFTMAX.name, extras={})

    @property
    def digest(self) -> str:
        """SHA-256 over what attention sees: offset, merge, and every tensor's name, shape, dtype and bytes."""
        return stored.content_digest(dict(self.tensors()), self.position_offset, self.merge)

    def save(self, path: str | Path, encoding: Mapping[str, Encoded] | None = None) -> Path:
        """Write the folder `path` (prefix.safetensors, manifest.json), atomically, and return its path.

        encoding: tensor name → the stored form that decodes to exactly that tensor; others are stored plainly.
        Raises `PrefixError` for non-finite tensors and for whatever `load` would refuse (names, types, a record that is
        not JSON), `PrefixFormatError` if `path` is a file or a folder that holds something other than a prefix,
        `StorageError` if the disk is full. After an error `path` is unchanged.
        """
        stored.require_names((*self.slots, *self.extras))
        stored.require_dtypes(self.tensors())
        self.require_finite()
        Fingerprint.from_manifest(asdict(self.base), str(path))
        facts = {
            "length": self.length,
            "position_offset": self.position_offset,
            "merge": self.merge,
            "base": asdict(self.base),
            "method": self.method,
            "record": dict(self.record),
        }
        return stored.write(Path(path), dict(self.tensors()), facts, encoding or {})

    @classmethod
    def load(cls, path: str | Path, *, device: str | torch.device = "cpu") -> Prefix:
        """Read a folder written by `save`, a run's, or a version of the store: `team/task[@tag]` or `team/task@digest`.

        The tensors own their memory; what happens to the files afterwards doesn't matter. A reader that meets a writer
        reads again. Older formats give an `OldFormatWarning`.
        Raises `PrefixFormatError` unless names, shapes, dtypes and digests are those of the manifest and all numbers
        are finite, `UnknownPrefixError` if the store has no such version.
        """
        with located(path) as found:
            folder = Path(found)
            prefix, version = stored.steadily(folder, lambda: cls._read(folder))
        if version < stored.VERSION:
            note_old_format(folder / stored.MANIFEST, stored.COVERED)
        return prefix.to(device=device) if str(device) != "cpu" else prefix

    @classmethod
    def _read(cls, folder: Path) -> tuple[Prefix, int]:
        """Return the prefix in `folder` and its format version."""
        tensors, manifest = stored.read(folder)
        slots = {name: KV(tensors[f"{name}.key"], tensors[f"{name}.value"]) for name in manifest["slots"]}
        base = Fingerprint.from_manifest(manifest["base"], str(folder / stored.MANIFEST))
        try:
            prefix = cls(
                slots=slots,
                position_offset=manifest["position_offset"],
                base=base,
                merge=manifest["merge"],
                extras={name: tensors[f"{stored.EXTRA}{name}"] for name in manifest["extras"]},
                method=manifest["method"],
                record=manifest["record"],
            )
            prefix.require_finite()
        except PrefixError as error:
            raise PrefixFormatError(f"{folder}: {error}") from error
        stored.require_content(folder, manifest, prefix.digest, prefix.length)
        return prefix, manifest["version"]

    def with_offset(self, offset: int, base: Composer) -> Prefix:
        """Return this prefix with position offset `offset`, its keys rotated to match.

        Exact for rotary positions with static frequencies. Raises `PositionError` for others.
        """
        return base.prefix_with_offset(self, offset)

    def to_cache(self, base: Composer, *, batch_size: int = 1) -> Any:
        """Return a Transformers cache that holds this prefix. See `Base.prefix_to_cache`."""
        return base.prefix_to_cache(self, batch_size=batch_size)

    @classmethod
    def from_kv(
        cls,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        base: Composer,
        *,
        position_offset: int | None = None,
    ) -> Prefix:
        """Make a prefix from keys and values, one pair per slot of `base` in order.

        keys, values: lists of `[num_kv_heads, length, head_dim]`; keys after rotary embedding.
        position_offset: None: the length for decoders, the KV-cache convention, and 0 for others.
        Raises `PrefixMismatchError` if count or shapes are not those of `base`.
        """
        return base.prefix_from_kv(keys, values, position_offset=position_offset)

    @classmethod
    def from_text(cls, text: str, base: Composer, *, length: int | None = None) -> Prefix:
        """Make a prefix of the keys and values that `base` computes for `text`. It acts like `text` in front.

        length: exact number of virtual tokens; the text is cut or repeated. No special tokens are added.
        Raises `PrefixError` if the text has no tokens.
        """
        return base.prefix_from_text(text, length=length)
