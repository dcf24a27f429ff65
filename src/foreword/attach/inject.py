"""Attaching prefixes to a Transformers model, and detaching.

There are two routes. "attention": the model's attention implementation becomes Foreword's function (see
`function`). "cache": models with attention code of their own get the prefix in front of their cache
(see `cached`). The model object holds its `Injector`, which installs the hooks. All hooks read one `State`,
which says what is attached.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from foreword.attach import cached, function, positions, recompute, virtual
from foreword.attach.attachment import Attachment
from foreword.attach.entry import Entry, by_name, parameters_of
from foreword.attach.state import State
from foreword.attention.call import AttentionCall
from foreword.errors import AttachError, BatchMismatchError
from foreword.models.slots import ModelSlots
from foreword.prefix import KV, Prefix

_INJECTOR = "_foreword_injector"  # attribute of a model while something is attached
_LOCK = threading.Lock()  # held only while something is installed or removed


class Injector:
    """Installs the hooks on one model and removes them. owner: the thread that attached."""

    def __init__(self, model: nn.Module, slots: ModelSlots) -> None:
        self.state = State(self.active)
        self.owner = threading.get_ident()
        self._model, self._slots = model, slots
        self._stacks = [model.get_submodule(stack.path) for stack in slots.stacks]
        self._implementations: list[tuple[Any, str | None]] = []  # of each config, before the attach
        self._hooks: list[Any] = []
        self._watches_tables = False  # True while the embedding tables are hooked

    def install(self) -> None:
        self._model.__dict__[_INJECTOR] = self
        for stack, module in zip(self._slots.stacks, self._stacks, strict=True):
            entry = Entry(self.state, self._model, stack, self._slots)
            self._hooks.append(module.register_forward_pre_hook(entry.before, with_kwargs=True))
        if self._slots.route == "cache":
            self._hooks += [module.register_forward_hook(cached.put_back, with_kwargs=True) for module in self._stacks]
        else:
            self._install_function()

    def _install_function(self) -> None:
        """Make every attention module of the stacks call Foreword's function."""
        sites = function.install(self._model, dict(self._slots.readers), self.state)
        self.state.each_pass = [site.start for site in sites if site.counts]
        self._implementations = [(config, config._attn_implementation) for config in _configs(self._stacks)]
        model_config: Any = self._model.config
        if model_config.get_text_config() is not model_config:
            self._hooks.append(self._model.register_forward_pre_hook(self._count_positions, with_kwargs=True))
        for config, _ in self._implementations:
            config._attn_implementation = function.IMPLEMENTATION

    def remove(self) -> None:
        for config, implementation in self._implementations:
            config._attn_implementation = implementation
        for hook in self._hooks:
            hook.remove()
        self._implementations, self._hooks, self._watches_tables = [], [], False
        self.state.each_pass = []
        for module in self._stacks:
            recompute.unwrap(module)
            cached.forget(module)
        function.remove(self._model, dict(self._slots.readers))
        self._model.__dict__.pop(_INJECTOR, None)

    def set_current(self, attachment: Attachment) -> None:
        """Make `attachment` current. Hook the embedding tables when the first prompt is to be inserted."""
        self.state.current = attachment
        if attachment.has_embeddings and not self._watches_tables:
            for table in virtual.tables_of(self._model):
                tokens = virtual.VirtualTokens(self.state, table)
                self._hooks.append(table.register_forward_pre_hook(tokens.before))
                self._hooks.append(table.register_forward_hook(tokens.after))
            self._watches_tables = True

    def _count_positions(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Pre-hook of a model around the stack (text with pictures): set positions, as it would count padding too."""
        arguments, current = by_name(parameters_of(module), args, kwargs), self.state.current
        if current is not None and any(current.offsets) and arguments.get("position_ids") is None:
            arguments["position_ids"] = positions.counted(arguments)
        return (), arguments

    @contextmanager
    def active(self, attachment: Attachment, same_thread: bool = False) -> Iterator[None]:
        """Make `attachment` current. Install the hooks first if they are not installed.

        same_thread: raise `AttachError` if another thread has attached. False for a recomputation, which runs on
        autograd's thread.
        """
        with _LOCK:
            holder: Injector | None = self._model.__dict__.get(_INJECTOR)
            if same_thread and holder is not None and holder.owner != threading.get_ident():
                raise AttachError(
                    "another thread has a prefix attached to this model; attach a list with one prefix per row, "
                    "or use a second model"
                )
            if holder is None:
                self.owner = threading.get_ident()
                self.install()
        injector = holder or self
        state = injector.state
        previous = state.current, state.past
        injector.set_current(attachment)
        state.past = 0
        try:
            yield
        finally:
            state.current, state.past = previous
            if holder is None:
                with _LOCK:
                    self.remove()


@contextmanager
def attach(
    model: nn.Module,
    slots: ModelSlots,
    rows: Sequence[Prefix | None],
    backend: str = "auto",
    packed: Sequence[int] | None = None,
) -> Iterator[None]:
    """Attach `rows` (one prefix for all, or one entry per batch row) to `model` for the `with` block.

    packed: tokens of each row, if the rows stand one after another in a single row; else None.
    An inner attach replaces the outer one until it ends.
    Raises `AttachError` if another thread has something attached to the same model, or if packing is not possible.
    On the cache route raises `PrefixMismatchError` or `PositionError` for prefixes that it can't attach.
    """
    if slots.route == "cache":
        cached.require(slots, rows)
    if packed is not None:
        _require_packable(slots, rows, packed)
    floating = [p for p in model.parameters() if p.is_floating_point()]
    parameter = next((p for p in floating if p.device.type != "meta"), floating[0])  # offloaded ones are on meta
    attachment = Attachment(rows, parameter, backend, packed)
    injector = model.__dict__.get(_INJECTOR) or Injector(model, slots)
    try:
        with injector.active(attachment, same_thread=True):
            yield
    finally:
        attachment.masks.clear()


def switch(model: nn.Module, slots: ModelSlots, rows: Sequence[Prefix | None]) -> None:
    """Replace the prefixes of the open attach by `rows`, until it ends.

    Raises `AttachError` if this thread has no open attach, or if packed rows are attached.
    """
    injector: Injector | None = model.__dict__.get(_INJECTOR)
    if injector is None or injector.state.current is None or injector.owner != threading.get_ident():
        raise AttachError(
            "nothing is attached in this thread; open an attach first, within which prefixes are switched"
        )
    current = injector.state.current
    if current.packed is not None:
        raise AttachError("packed rows are attached; end that attach first")
    if slots.route == "cache":
        cached.require(slots, rows)
    injector.set_current(current.with_rows(rows))


def _require_packable(slots: ModelSlots, rows: Sequence[Prefix | None], packed: Sequence[int]) -> None:
    limit = slots.packing_limit
    if not limit:
        raise AttachError("this architecture's rows can't be packed; pad them")
    if any(prefix is not None and prefix.kind.inserted for prefix in rows):
        raise AttachError("prompts that are inserted among the embeddings can't be packed; pad the rows")
    if not packed or min(packed) < 1 or max(packed) > limit:
        raise AttachError(f"packed rows must have 1 to {limit} tokens, got {list(packed)}")
    if len(rows) not in (1, len(packed)):
        raise BatchMismatchError(f"{len(rows)} prefixes are attached, but {len(packed)} rows are packed")


@contextmanager
def observed(
    model: nn.Module,
    slots: ModelSlots,
    rows: Sequence[Prefix | None],
    observer: Callable[[str, AttentionCall], None],
) -> Iterator[None]:
    """`attach`, and call `observer(slot name, call)` before each attention call is computed.

    Raises `AttachError` for models with attention code of their own.
    """
    if slots.route == "cache":
        raise AttachError(f"{type(model).__name__} has attention code of its own; its queries can't be seen from here")
    with attach(model, slots, rows):
        model.__dict__[_INJECTOR].state.current.observer = observer
        yield


def capture(model: nn.Module, slots: ModelSlots, **inputs: Any) -> dict[str, KV]:
    """Run `model` on `inputs` and return each slot's keys and values as attention sees them.

    key: `[B, H_kv, n, d_k]`, after rotary embedding. value: `[B, H_kv, n, d_v]`. No prefix is attached, and the cache
    is empty or off.
    Differentiable with respect to `inputs_embeds`.
    """
    if slots.route == "cache":
        with attach(model, slots, [None]):
            return cached.capture(model, slots, inputs)
    takes_cache = "use_cache" in parameters_of(model)
    with attach(model, slots, [None]):
        attachment = model.__dict__[_INJECTOR].state.current
        attachment.captured = {}
        model(**inputs, **({"use_cache": False} if takes_cache else {}))
        captured: dict[str, KV] = attachment.captured
    return {slot.name: captured[slot.name] for slot in slots.slots if slot.name in captured}


def _configs(stacks: list[nn.Module]) -> list[Any]:
    """Return every distinct config object in the stacks. Attention modules and mask code read them."""
    modules = [module for stack in stacks for module in stack.modules()]
    configs = {id(config): config for module in modules if (config := getattr(module, "config", None))}
    return [config for config in configs.values() if hasattr(config, "_attn_implementation")]
