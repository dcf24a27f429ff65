"""Attaching prefixes to a Transformers model, at its attention function.

One function is registered with Transformers' `AttentionInterface`, and its mask function with
`AttentionMaskInterface` (a name without one gets no mask at all, and silently loses causality).
While something is attached, the model's attention implementation is that function. State lives on
the model object: each attention module points to the model's `Injector`, which holds the current
`Attachment`.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foreword.attention import backends, positions, recompute
from foreword.attention.call import AttentionCall, MaskCache, normalise, refuse_attentions
from foreword.attention.merge import two_part_attention
from foreword.attention.reference import reference_attention
from foreword.attention.rows import RowMap
from foreword.errors import AttachError
from foreword.prefix import KV, Prefix

if TYPE_CHECKING:
    from foreword.models.slots import ModelSlots

IMPLEMENTATION = "foreword"
BACKENDS = ("auto", "math", "reference")
_SLOT = "_foreword_slot"
_INJECTOR = "_foreword_injector"
_LOCK = threading.Lock()  # held only while something is installed or removed


class Attachment:
    """The prefixes of one `attach`, ready for attention: tensors on the model's device, row map, offsets.

    backend: "auto" (flash where it fits, else math), "math", or "reference".
    """

    def __init__(self, rows: Sequence[Prefix | None], parameter: Tensor, backend: str = "auto") -> None:
        if backend not in BACKENDS:
            raise AttachError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
        distinct = list({id(row): row for row in rows if row is not None}.values())
        number = {id(prefix): index for index, prefix in enumerate(distinct)}
        self.rows = RowMap([None if row is None else number[id(row)] for row in rows], parameter.device)
        self.offsets = [0 if row is None else row.position_offset for row in rows]
        self.captured: dict[str, KV] | None = None
        self.masks = MaskCache()
        self._backend = backend
        self._prefixes = [
            {
                name: KV(
                    kv.key.to(parameter.device, parameter.dtype),
                    kv.value.to(parameter.device, parameter.dtype),
                )
                for name, kv in prefix.slots.items()
            }
            for prefix in distinct
        ]
        self._offset_tensors: dict[int, Tensor] = {}

    def offset_tensor(self, batch: int, device: torch.device) -> Tensor:
        """Offsets of `batch` rows, `[batch or 1, 1]`."""
        if batch not in self._offset_tensors:
            entries = self.rows.expand(batch)
            repeats = max(1, len(entries) // len(self.offsets))
            same = len(set(self.offsets)) == 1
            values = self.offsets[:1] if same else [offset for offset in self.offsets for _ in range(repeats)]
            self._offset_tensors[batch] = torch.tensor(values, device=device).unsqueeze(1)
        return self._offset_tensors[batch]

    def run(self, slot: str, call: AttentionCall) -> Tensor:
        """Attention output `[B, H, n, d_v]` of one slot."""
        if self.captured is not None:
            self.captured[slot] = KV(call.key, call.value)
        if self._backend == "reference":
            rows = self.rows.expand(call.batch)
            return reference_attention(call, [None if row is None else self._prefixes[row].get(slot) for row in rows])
        pairs = [
            (group.rows, kv)
            for group in self.rows.groups(call.batch)
            if (kv := self._prefixes[group.prefix].get(slot)) is not None
        ]
        flash = backends.choose(call) if self._backend == "auto" else None
        return two_part_attention(call, pairs, flash)


class Injector:
    """What is installed on one model while something is attached to it."""

    def __init__(self, model: nn.Module, slots: ModelSlots) -> None:
        self.current: Attachment | None = None
        self.owner = threading.get_ident()
        self._model = model
        self._slots = slots
        self._stack = model.get_submodule(slots.stack)
        self._names = list(inspect.signature(self._stack.forward).parameters)
        self._before: list[tuple[Any, str | None]] | None = None
        self._hook: Any = None

    def install(self) -> None:
        _register()
        self._before = [(config, config._attn_implementation) for config in _configs(self._model)]
        for slot in self._slots.slots:
            self._model.get_submodule(slot.module).__dict__[_SLOT] = (self, slot.name)
        self._model.__dict__[_INJECTOR] = self
        self._hook = self._stack.register_forward_pre_hook(self._before_stack, with_kwargs=True)
        for config, _ in self._before:
            config._attn_implementation = IMPLEMENTATION

    def remove(self) -> None:
        for config, implementation in self._before or ():
            config._attn_implementation = implementation
        self._hook.remove()
        recompute.unwrap(self._stack)
        self._model.__dict__.pop(_INJECTOR, None)
        for slot in self._slots.slots:
            self._model.get_submodule(slot.module).__dict__.pop(_SLOT, None)

    @contextmanager
    def active(self, attachment: Attachment, own_thread: bool = False) -> Iterator[None]:
        """Make `attachment` current, installing first where nothing is attached (any more).

        own_thread: refuse if another thread has attached; a recomputation on autograd's thread may go on.
        """
        with _LOCK:
            holder: Injector | None = self._model.__dict__.get(_INJECTOR)
            if own_thread and holder is not None and holder.owner != threading.get_ident():
                raise AttachError(
                    "another thread has a prefix attached to this model; attach a list with one prefix per row, "
                    "or use a second model"
                )
            if holder is None:
                self.owner = threading.get_ident()
                self.install()
        injector = holder or self
        previous, injector.current = injector.current, attachment
        try:
            yield
        finally:
            injector.current = previous
            if holder is None:
                with _LOCK:
                    self.remove()

    def _before_stack(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        attachment = self.current
        if attachment is None:
            return args, kwargs
        arguments = dict(zip(self._names, args, strict=False)) | kwargs
        refuse_attentions(arguments)
        tokens = positions.tokens_of(arguments)
        batch, n = tokens.shape[:2]
        offsets = attachment.offset_tensor(batch, tokens.device)
        if any(attachment.offsets):
            arguments["position_ids"] = positions.shifted_positions(arguments, offsets)
            if self._slots.position_limit is not None:
                highest = max(attachment.offsets)
                bound = positions.past_length(arguments) + n + highest
                positions.check_limit(arguments["position_ids"], self._slots.position_limit, bound, highest)
        recompute.wrap(module, self, attachment)  # without gradients too: layers checkpoint whenever they train
        return (), arguments


@contextmanager
def attach(model: nn.Module, slots: ModelSlots, rows: Sequence[Prefix | None], backend: str = "auto") -> Iterator[None]:
    """Attach `rows` (one prefix for all, or one entry per batch row) to `model` for the `with` block.

    An inner attach replaces the outer one until it ends. Raises `AttachError` if another thread has
    something attached to the same model.
    """
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    attachment = Attachment(rows, parameter, backend)
    injector = model.__dict__.get(_INJECTOR) or Injector(model, slots)
    try:
        with injector.active(attachment, own_thread=True):
            yield
    finally:
        attachment.masks.clear()


def capture(model: nn.Module, slots: ModelSlots, **inputs: Any) -> dict[str, KV]:
    """Run `model` on `inputs` and return each slot's keys and values as attention sees them.

    key `[B, H_kv, n, d_k]` after rotary embedding, value `[B, H_kv, n, d_v]`; no prefix, no cache.
    Differentiable with respect to `inputs_embeds`.
    """
    with attach(model, slots, [None]):
        attachment = model.__dict__[_INJECTOR].current
        attachment.captured = {}
        model(**inputs, use_cache=False)
        captured: dict[str, KV] = attachment.captured
    return captured


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The function registered with `AttentionInterface`; shapes as in Transformers' own."""
    entry = module.__dict__.get(_SLOT)
    attachment = entry[0].current if entry else None
    if entry is None or attachment is None:
        raise AttachError(
            f"{type(module).__name__} uses the attention implementation {IMPLEMENTATION!r} outside an attach"
        )
    call = normalise(
        module,
        query,
        key,
        value,
        attention_mask,
        scaling,
        dropout,
        is_causal,
        softcap,
        others,
        attachment.masks,
    )
    return attachment.run(entry[1], call).transpose(1, 2).contiguous(), None


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def _configs(model: nn.Module) -> list[Any]:
    """Every distinct config object in the model; attention modules and mask code read them."""
    found = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    return [config for config in found.values() if hasattr(config, "_attn_implementation")]
