"""`FrozenModel`: a model with its tokenizer, slots and fingerprint, to which prefixes attach."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, ParamSpec, Self, TypeVar
from weakref import WeakSet

import torch

from foreword import attach
from foreword.errors import AttachError, PositionError, PrefixMismatchError, WeightsMismatchWarning
from foreword.models.architectures import support_of
from foreword.models.lora import carries_lora, combined_hash, without_lora
from foreword.models.shapes import base_shape
from foreword.models.slots import ModelSlots, Slot, embedding_width, find_slots
from foreword.models.weights import hash_parameters
from foreword.prefix import KV, Fingerprint, Prefix
from foreword.prefix.records import public_name
from foreword.proof import require_proof

Prefixes = Prefix | None | Sequence[Prefix | None]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class FrozenModel:
    """A frozen model with slots and a fingerprint. `Base` adds inputs, generation and prefixes made from texts.

    model, tokenizer, name, quantisation, weights_hash: see `Base`.
    An architecture outside the table is tried first (`foreword.proof`), which takes a second or two the first time.
    Raises `UnsupportedModelError` for an architecture that takes no prefix.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        name: str | None = None,
        quantisation: str | None = None,
        weights_hash: Callable[[], str] | None = None,
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.name = name or model.config.name_or_path or type(model).__name__
        self._quantisation = quantisation
        self._weights_hash = weights_hash
        self._fitting: WeakSet[Prefix] = WeakSet()  # prefixes that are known to fit
        carries_lora(model)  # raises an error for other adapters
        require_proof(without_lora(model))
        self._model_slots = find_slots(model)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self.slots)} slots, {self.dtype}, {self.device})"

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled and copied: the model with its weights, and the hash of its checkpoint.

        Raises `AttachError` while something is attached, by whomever.
        """
        if attach.installed(self.model):
            raise AttachError(f"{self.name} has a prefix attached; end the attach before the base is copied or pickled")
        known = self._weights_hash
        given = None if known is None else partial(str, known())
        return self.__dict__ | {"_fitting": None, "_weights_hash": given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_fitting": WeakSet()})

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The attention layers that take a prefix, in layer order."""
        return self._model_slots.slots

    @property
    def model_slots(self) -> ModelSlots:
        return self._model_slots

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def max_positions(self) -> int:
        """The number of positions the model was made for. Prefix and tokens share them."""
        limit = self._model_slots.position_limit
        config = self.model.config.get_text_config()
        return int(limit or getattr(config, "max_position_embeddings", None) or 2**31)

    @property
    def embedding_width(self) -> int:
        """Width of the input embeddings. In ALBERT and ELECTRA they are narrower than the layers."""
        return embedding_width(self.model)

    def default_offset(self, length: int) -> int:
        """Return the default position offset of a prefix of `length` virtual tokens.

        Decoders: `length`, the KV-cache convention. Encoders and encoder–decoders: 0, since they have few positions
        (BERT) or take none as an argument (T5, BART).
        """
        return length if self._model_slots.default_offset else 0

    def weights_hash(self) -> str:
        """Return the hash of the stored checkpoint, or of the weights in memory.

        If the model carries a LoRA, the hash of its present weights is added.
        """
        if not carries_lora(self.model):
            return (self._weights_hash or partial(hash_parameters, self.model))()
        return combined_hash(self.model, self._weights_hash() if self._weights_hash else None)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Architecture, shapes and weight hash. The first use reads the checkpoint; the result is kept."""
        return Fingerprint(
            architecture=type(without_lora(self.model)).__name__,
            **base_shape(self.model.config),
            weights=self.weights_hash(),
            source=public_name(str(self.name)),
            quantisation=self._quantisation,
            support=support_of(self.model),
        )

    @contextmanager
    def attach(self, prefix: Prefixes, *, backend: str = "auto", packed: Sequence[int] | None = None) -> Iterator[Self]:
        """Within the `with` block every call of `base.model` runs with the prefix in front.

            >>> inputs = base.tokenizer(["Hello", "Good morning"], return_tensors="pt", padding=True)
            >>> with base.attach([prefix, None]):
            ...     logits = base.model(**inputs).logits
            >>> torch.equal(logits[0], base.model(**inputs).logits[0])
            False

        prefix: a `Prefix` for all rows; a list with one entry per batch row (`None`: the plain base);
        or None. If a call has k rows per entry, as in beam search, row r uses entry r // k.
        Real tokens' positions are shifted by each row's `position_offset`; in an encoder–decoder the decoder's.
        backend: "auto" (flash where it fits), "math", or "reference" (slow, for checking).
        packed: tokens of each row, if the model is called with all rows one after another in a single row,
        `input_ids [1, Σ tokens]`, without padding, mask or cache. A token then sees only its own row.

        What is attached belongs to the context (`contextvars`): to this thread, or to this asyncio task and the tasks
        made in the block. All others see the plain base, bit for bit, or what they have attached themselves; any
        number of blocks may be open on one base. `carry` takes an attachment to a thread.

        The end of the block restores the model exactly, also after an exception. Tasks and threads that outlive the
        block keep what they were given. An inner attach replaces the outer one until it ends. Gradients flow into
        the prefix's tensors that require them.
        Raises `PrefixMismatchError` for another base's shapes; warns (`WeightsMismatchWarning`, once for
        each prefix) for other weights of the same shapes.
        """
        with attach.attach(self.model, self._model_slots, self._checked(prefix), backend, packed):
            yield self

    def switch(self, prefix: Prefixes) -> None:
        """Replace the attached prefix by `prefix`, until the open `attach` ends, for this thread or task alone.

        This is far cheaper than a new attach: the model is not changed, and a prefix in the base's dtype and on its
        device is not copied. prefix: as for `attach`. Raises `AttachError` if nothing is attached, and the errors of
        `attach`.
        """
        attach.switch(self.model, self._model_slots, self._checked(prefix))

    def carry(self, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """Return `function`, to be called in another thread with what is attached here.

            >>> from threading import Thread
            >>> inputs, found = base.tokenizer("Hello", return_tensors="pt"), []
            >>> with base.attach(prefix):
            ...     thread = Thread(target=base.carry(lambda: found.append(base.model(**inputs).logits)))
            ...     expected = base.model(**inputs).logits
            >>> thread.start(); thread.join()
            >>> torch.equal(found[0], expected)
            True

        A new thread has an empty context, in which nothing is attached; so do the threads of an executor.
        `asyncio.to_thread` and new asyncio tasks carry by themselves, and so does `base.model.generate` when it is
        given to a thread: streamers of Transformers work as they always do. The call may begin or go on after the block
        has ended. Raises `AttachError` if nothing is attached.
        """
        return attach.carried(self.model, self._model_slots, function)

    def _checked(self, prefix: Prefixes) -> list[Prefix | None]:
        """Return one entry per row, or one for all. Raises the errors of `require_fit`."""
        rows: list[Prefix | None] = [prefix] if prefix is None or isinstance(prefix, Prefix) else list(prefix)
        if not rows:
            raise PrefixMismatchError("attach got an empty list; give one entry per row, None for the plain base")
        for entry in {id(row): row for row in rows if row is not None}.values():
            if entry not in self._fitting:
                self.require_fit(entry)
                self._fitting.add(entry)
        return rows

    def capture(self, input_ids: torch.Tensor | None = None, **inputs: torch.Tensor) -> dict[str, KV]:
        """Return keys and values of every slot for one row, as attention sees them.

        input_ids: `[1, n]`; an encoder–decoder also gets it as its decoder's input. inputs: other inputs of the
        model by name, such as `pixel_values`.
        Returns slot name → `KV` of `[num_kv_heads, n, head_dim]`, without gradients.
        """
        if input_ids is not None:
            inputs["input_ids"] = input_ids
            if self.model.config.is_encoder_decoder:
                inputs.setdefault("decoder_input_ids", input_ids)
        placed = {name: value.to(self.device) for name, value in inputs.items()}
        with torch.no_grad():
            captured = attach.capture(self.model, self._model_slots, **placed)
        return {name: KV(kv.key[0].clone(), kv.value[0].clone()) for name, kv in captured.items()}

    def require_fit(self, prefix: Prefix) -> None:
        """Raise `PrefixMismatchError` unless `prefix` has this base's shapes, `PositionError` unless the base can give
        its offset. Warn if the base has other weights than the prefix was made on.
        """
        for field, value in self.fingerprint.shape.items():
            if (made_for := prefix.base.shape[field]) != value:
                raise PrefixMismatchError(
                    f"the prefix was made for {prefix.base.source or prefix.base.architecture} ({field} {made_for}), "
                    f"but {self.name} has {field} {value}"
                )
        self._require_slots(prefix)
        self._require_offset(prefix)
        self._warn_of_weights(prefix.base)

    def _require_slots(self, prefix: Prefix) -> None:
        slots = {slot.name: slot for slot in self.slots}
        for name in (*prefix.slots, *prefix.additions):
            if name not in slots:
                raise PrefixMismatchError(f"the prefix has a slot {name!r} that {self.name} lacks")
        for name, kv in prefix.slots.items():
            _require_shape(slots[name], kv, self.name)
        prefix.kind.require_fit(prefix.slots, prefix.extras, slots, self.embedding_width, self.name)

    def _require_offset(self, prefix: Prefix) -> None:
        offset, slots = prefix.position_offset, self._model_slots
        if offset and not slots.shifts:
            raise PositionError(
                f"the prefix has position_offset {offset}, but {self.name} takes no positions from outside; its "
                "prefixes have offset 0"
            )
        if offset and slots.biased and not prefix.kind.is_cache:
            raise PositionError(
                f"the prefix has position_offset {offset}, which in {self.name} acts on keys within the softmax only; "
                f"prefixes of merge {prefix.merge!r} have offset 0 there"
            )

    def _warn_of_weights(self, made_on: Fingerprint) -> None:
        if None in (self.fingerprint.weights, made_on.weights) or self.fingerprint.weights == made_on.weights:
            return
        warnings.warn(
            f"the prefix was made on other weights ({made_on.source}, {_describe(made_on)}) than {self.name} has "
            f"({_describe(self.fingerprint)}); it will run, but not as it was measured",
            WeightsMismatchWarning,
            stacklevel=4,
        )


def _require_shape(slot: Slot, kv: KV, name: str) -> None:
    expected = (slot.num_kv_heads, slot.key_dim), (slot.num_kv_heads, slot.value_dim)
    actual = (kv.key.shape[0], kv.key.shape[2]), (kv.value.shape[0], kv.value.shape[2])
    if expected != actual:
        raise PrefixMismatchError(
            f"{slot.name}: the prefix has (heads, width) {actual[0]} for keys and {actual[1]} for values, "
            f"{name} needs {expected[0]} and {expected[1]}"
        )


def _describe(fingerprint: Fingerprint) -> str:
    weights = (fingerprint.weights or "").removeprefix("sha256:")[:12]
    return f"weights {weights}" + (f", from {fingerprint.quantisation}" if fingerprint.quantisation else "")
