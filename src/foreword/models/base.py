"""`Base`: a frozen language model with its tokenizer, slots and fingerprint."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any
from weakref import WeakSet

import torch

from foreword.attention import inject
from foreword.errors import BatchMismatchError, PositionError, PrefixMismatchError, WeightsMismatchWarning
from foreword.merges import Gated
from foreword.models.inputs import Inputs, inputs_for
from foreword.models.lora import carries_lora, combined_hash, without_lora
from foreword.models.slots import ModelSlots, Slot, embedding_width, find_slots
from foreword.models.weights import hash_parameters
from foreword.prefix import EMBEDDINGS, KV, Fingerprint, Prefix

Rows = Prefix | None | Sequence[Prefix | None]


class Base:
    """A frozen base model. Make one with `foreword.load`, or from a model already in memory.

    model: a Transformers decoder, encoder or encoder–decoder (docs/models.md lists them); every parameter
    gets requires_grad False, and it is put into eval mode. tokenizer: its tokenizer, or None where only tensors are used.
    weights_hash: gives the hash of the stored checkpoint when it is first needed; without it the
    parameters in memory are hashed.
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
        carries_lora(model)  # refuses other adapters
        self._model_slots = find_slots(model)

    def __repr__(self) -> str:
        return f"Base({self.name!r}, {len(self.slots)} slots, {self.dtype}, {self.device})"

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The attention layers that take a prefix, in order."""
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
        """Positions the model was made for; prefix and tokens share them."""
        limit = self._model_slots.position_limit
        config = self.model.config.get_text_config()
        return int(limit or getattr(config, "max_position_embeddings", None) or 2**31)

    @property
    def embedding_width(self) -> int:
        """Width of the input embeddings, which are narrower than the layers in ALBERT and ELECTRA."""
        return embedding_width(self.model)

    def default_offset(self, length: int) -> int:
        """How far a prefix of `length` virtual tokens moves real tokens up unless it says else.

        Decoders: `length`, the KV-cache convention. Encoders and encoder–decoders: 0, since their
        positions are few (BERT) or not given from outside (T5, BART).
        """
        return length if self._model_slots.default_offset else 0

    def weights_hash(self) -> str:
        """Hash of the stored checkpoint (or of the weights in memory), with the LoRA's as it is now if there is one."""
        if not carries_lora(self.model):
            return (self._weights_hash or partial(hash_parameters, self.model))()
        return combined_hash(self.model, self._weights_hash() if self._weights_hash else None)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Architecture, shapes and weight hash. The first use reads the checkpoint once (then cached)."""
        config = self.model.config.get_text_config()
        return Fingerprint(
            architecture=type(without_lora(self.model)).__name__,
            model_type=self.model.config.model_type,
            hidden_size=config.hidden_size,
            num_layers=config.num_hidden_layers,
            vocab_size=getattr(config, "vocab_size", None) or 0,  # pictures have none
            weights=self.weights_hash(),
            source=str(self.name),
            quantisation=self._quantisation,
        )

    @contextmanager
    def attach(self, prefix: Rows, *, backend: str = "auto", packed: Sequence[int] | None = None) -> Iterator[Base]:
        """Within the `with` block every call of `base.model` runs with the prefix in front.

        prefix: a `Prefix` for all rows; a list with one entry per batch row (`None`: the plain base);
        or None. Where a call has k rows per entry, as in beam search, row r uses entry r // k.
        Real tokens' positions are shifted by each row's `position_offset`.
        backend: "auto" (flash where it fits), "math", or "reference" (slow, for checking).
        packed: tokens of each row, where the model is called with all rows one behind another in a single one,
        `input_ids [1, Σ tokens]`, without padding, mask or cache; a token sees its own row alone.

        Leaving the block, also by an exception, restores the model exactly. An inner attach replaces
        the outer one until it ends. Gradients flow into the prefix's tensors where they require them.
        Raises `PrefixMismatchError` for another base's shapes; warns (`WeightsMismatchWarning`, once for
        each prefix) for other weights of the same shapes.
        """
        with inject.attach(self.model, self._model_slots, self._checked(prefix), backend, packed):
            yield self

    def switch(self, prefix: Rows) -> None:
        """Within an open `attach`: put `prefix` in the place of what is attached, until that attach ends.

        Far cheaper than leaving and attaching anew: nothing in the model is touched, and a prefix in the base's dtype and on
        its device is not copied. prefix: as for `attach`. Raises `AttachError` if nothing is attached, and what `attach`
        raises.
        """
        inject.switch(self.model, self._model_slots, self._checked(prefix))

    def _checked(self, prefix: Rows) -> list[Prefix | None]:
        """One entry per row, or one for all; each is known to fit."""
        rows: list[Prefix | None] = [prefix] if prefix is None or isinstance(prefix, Prefix) else list(prefix)
        if not rows:
            raise PrefixMismatchError("attach got an empty list; give one entry per row, None for the plain base")
        for entry in {id(row): row for row in rows if row is not None}.values():
            if entry not in self._fitting:
                self.require_fit(entry)
                self._fitting.add(entry)
        return rows

    def capture(self, input_ids: torch.Tensor | None = None, **inputs: torch.Tensor) -> dict[str, KV]:
        """Keys and values of every slot for one row, as attention sees them.

        input_ids: `[1, n]`; an encoder–decoder gets it as its decoder's input too. inputs: the model's
        further or other inputs by name, such as `pixel_values`.
        Returns slot name → `KV` of `[num_kv_heads, n, head_dim]`, without gradients.
        """
        if input_ids is not None:
            inputs["input_ids"] = input_ids
            if self.model.config.is_encoder_decoder:
                inputs.setdefault("decoder_input_ids", input_ids)
        placed = {name: value.to(self.device) for name, value in inputs.items()}
        with torch.no_grad():
            found = inject.capture(self.model, self._model_slots, **placed)
        return {name: KV(kv.key[0].clone(), kv.value[0].clone()) for name, kv in found.items()}

    def require_fit(self, prefix: Prefix) -> None:
        """Raise `PrefixMismatchError` unless `prefix` has this base's shapes, `PositionError` for an offset it
        can't have; warn at other weights."""
        own, other = self.fingerprint, prefix.base
        for field, value in own.shape.items():
            if other.shape[field] != value:
                raise PrefixMismatchError(
                    f"the prefix was made for {other.source or other.architecture} ({field} {other.shape[field]}), "
                    f"but {self.name} has {field} {value}"
                )
        known = {slot.name: slot for slot in self.slots}
        for name in (*prefix.slots, *prefix.additions):
            if name not in known:
                raise PrefixMismatchError(f"the prefix has a slot {name!r} that {self.name} lacks")
        for name, kv in prefix.slots.items():
            _require_shape(known[name], kv, self.name)
        for name, addition in prefix.additions.items():
            slot = known[name]
            wanted = (
                (slot.num_heads,) if isinstance(addition, Gated) else (slot.num_heads, slot.key_dim, slot.value_dim)
            )
            if tuple(addition[-1].shape) != wanted:
                raise PrefixMismatchError(
                    f"{name}: the prefix's {prefix.merge} tensor is {tuple(addition[-1].shape)}, {self.name} needs {wanted}"
                )
        reads = {"embedding": EMBEDDINGS, "conditioned": "condition.inner"}.get(prefix.merge)
        if reads is not None and prefix.extras[reads].shape[1] != self.embedding_width:
            raise PrefixMismatchError(
                f"the prefix's {reads} has width {prefix.extras[reads].shape[1]}, {self.name}'s embeddings {self.embedding_width}"
            )
        if prefix.position_offset and not self._model_slots.shifts:
            raise PositionError(
                f"the prefix has position_offset {prefix.position_offset}, but {self.name} takes no positions from "
                "outside; its prefixes have offset 0"
            )
        if None not in (own.weights, other.weights) and own.weights != other.weights:
            warnings.warn(
                f"the prefix was made on other weights ({other.source}, {_describe(other)}) than {self.name} has "
                f"({_describe(own)}); it will run, but not as it was measured",
                WeightsMismatchWarning,
                stacklevel=3,
            )

    def inputs(self, prompts: Sequence[str] | Sequence[Sequence[int]], prefix: Rows) -> Inputs:
        """Rows and tensors for any call of `model`, with any kind of prefix.

        Needed where a prefix is inserted among the input embeddings or depends on the row's input (merge "embedding",
        "conditioned"); harmless elsewhere. prompts: texts or token ids, one per row. prefix: one for all, or one per row.

            made = base.inputs(["Hello", "Good morning"], prefix)
            with base.attach(made.rows):
                base.model.generate(**made.tensors)

        Decoders' rows are padded on the left, others' on the right.
        """
        rows = [prefix] * len(prompts) if prefix is None or isinstance(prefix, Prefix) else list(prefix)
        if len(rows) != len(prompts):
            raise BatchMismatchError(f"{len(prompts)} prompts, but {len(rows)} prefixes; give one per prompt")
        return inputs_for(self, prompts, rows)

    def generate(
        self,
        prompts: Sequence[str],
        prefix: Rows = None,
        *,
        max_new_tokens: int = 64,
        template: str | None = None,
        batch_size: int = 16,
        progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> list[str]:
        """Continue each prompt and return the new texts, without prompt or special tokens.

        prompts: inputs. Each is rendered as its row's prefix was trained (its record's template); a
        row without a prefix uses the tokenizer's chat template if there is one, else the bare text.
        template: overrides that for every row, for instance "{input}" for bare text.
        prefix: one for all, or one per prompt. progress: called with the number of prompts finished.
        options: further arguments of Transformers' `generate`; decoding is greedy unless they say else. Functions among them that
        are told a row's number count rows as they are batched: by length, and by prefix.
        """
        from foreword.models.generation import generate_texts

        options = {"max_new_tokens": max_new_tokens} | options
        return generate_texts(self, list(prompts), prefix, template, batch_size, progress, options)


def _require_shape(slot: Slot, kv: KV, name: str) -> None:
    expected = (slot.num_kv_heads, slot.key_dim), (slot.num_kv_heads, slot.value_dim)
    found = (kv.key.shape[0], kv.key.shape[2]), (kv.value.shape[0], kv.value.shape[2])
    if expected != found:
        raise PrefixMismatchError(
            f"{slot.name}: the prefix has (heads, width) {found[0]} for keys and {found[1]} for values, "
            f"{name} needs {expected[0]} and {expected[1]}"
        )


def _describe(fingerprint: Fingerprint) -> str:
    weights = (fingerprint.weights or "").removeprefix("sha256:")[:12]
    return f"weights {weights}" + (f", from {fingerprint.quantisation}" if fingerprint.quantisation else "")
