"""Attaching prefixes to a Transformers model, and detaching.

There are two routes. "attention": the model's attention implementation becomes Foreword's function (see
`function`). "cache": models with attention code of their own get the prefix in front of their cache
(see `cached`). Each model has one `Injector`. It installs hooks, which stay as long as any context (see `contexts`)
has something attached. They act only in such contexts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import nn

from foreword.attach import cached, contexts, function, positions, recompute, virtual
from foreword.attach.attachment import Attachment
from foreword.attach.changing import changing_models
from foreword.attach.disguise import config_disguise, is_disguised, model_disguise
from foreword.attach.entry import Entry, by_name, parameters_of
from foreword.attach.state import State
from foreword.attach.table import PositionTable
from foreword.errors import AttachError, BatchMismatchError
from foreword.models.slots import ModelSlots
from foreword.models.stacks import TABLE, bias_of
from foreword.prefix import Prefix


class Injector:
    """Installs the hooks on one model and removes them."""

    def __init__(self, model: nn.Module, slots: ModelSlots) -> None:
        self.state = State(self.active)
        self._model, self._slots = ref(model), slots
        self._stacks: list[nn.Module] = []
        self._hooks: list[Any] = []
        self._classes: list[tuple[Any, type[Any]]] = []  # (object, its own class) of what is disguised
        self._disguises: dict[type[Any], type[Any]] = {}  # by own class, for the next time
        self._blocks: set[object] = set()  # one for each open block
        self.installed = False
        self._changing = False  # True while hooks are being installed or removed
        self._watches_tables = False  # True while the embedding tables are hooked

    def open(self) -> contexts.Block:
        """Install the hooks unless they are there. They stay until the block is garbage.

        Raises `AttachError` within an install or a removal, which only a signal handler can come into.
        """
        key = object()
        with changing_models():
            if self._changing:
                raise AttachError("an attach is being made or ended at this moment; attach outside the signal handler")
            block = contexts.Block(functools.partial(self._close, key))
            self._blocks.add(key)
            if not self.installed:
                try:
                    self._change(self._remove)  # what an interrupted removal has left
                    self._change(self._install)
                except BaseException:
                    self._change(self._remove)
                    block.close()
                    raise
                self.installed = True
        return block

    def _close(self, key: object) -> None:
        with changing_models():
            self._blocks.discard(key)
            if not self._blocks and self.installed:
                self.installed = False
                self._change(self._remove)

    def _change(self, change: Callable[[], None]) -> None:
        self._changing = True
        try:
            change()
        finally:
            self._changing = False

    def _install(self) -> None:
        model = self._model()
        if model is None:
            raise AttachError("the model no longer exists")
        self._stacks = [model.get_submodule(stack.path) for stack in self._slots.stacks]
        if any(is_disguised(thing) for thing in (model, *_configs(self._stacks))):
            raise AttachError(
                "another model has a prefix attached, of which this one is a part or whose config it shares; end that "
                "attach first, or give this model a copy of the config"
            )
        for stack, module in zip(self._slots.stacks, self._stacks, strict=True):
            entry = Entry(self.state, model, stack, self._slots)
            self._hooks.append(module.register_forward_pre_hook(entry.before, with_kwargs=True))
            if entry.view is not None:
                self._hooks.append(module.register_forward_hook(entry.view.put_back))
            if stack.shift == "table":
                embedding = module.get_submodule(TABLE)
                reading = PositionTable(self.state, embedding)
                self._hooks.append(embedding.register_forward_pre_hook(reading.before, with_kwargs=True))
                self._hooks.append(embedding.register_forward_hook(reading.after))
        self._disguise(model, model_disguise)
        if self._slots.route == "attention":
            self._install_function(model)

    def _install_function(self, model: Any) -> None:
        """Make every attention module of the stacks call Foreword's function in contexts with an attachment."""
        slots = self._slots
        relative: dict[str, nn.Module] = {}
        if slots.biased:
            biased = [slot.module for slot in slots.slots if slot.role == "decoder"]
            relative = dict.fromkeys(biased, bias_of(self._stacks[-1]))
        sites = function.install(model, dict(slots.readers), self.state, relative)
        self.state.each_pass = [site.start for site in sites if site.counts]
        if model.config.get_text_config() is not model.config:
            self._hooks.append(model.register_forward_pre_hook(self._count_positions, with_kwargs=True))
        for config in _configs(self._stacks):
            self._disguise(config, config_disguise)

    def _disguise(self, thing: Any, make: Callable[[type[Any], State], type[Any]]) -> None:
        own = type(thing)
        if own not in self._disguises:
            self._disguises[own] = make(own, self.state)
        self._classes.append((thing, own))
        thing.__class__ = self._disguises[own]

    def _remove(self) -> None:
        for thing, own in self._classes:
            thing.__class__ = own
        for hook in self._hooks:
            hook.remove()
        self._classes, self._hooks, self._watches_tables = [], [], False
        self.state.each_pass = []
        for module in self._stacks:
            recompute.unwrap(module)
        self._stacks = []  # one of them may be the model itself, which this object must not keep alive
        if (model := self._model()) is not None:
            function.remove(model, dict(self._slots.readers))

    def watch_tables(self) -> None:
        """Hook the embedding tables, for the first prompt that is to be inserted among the embeddings."""
        with changing_models():
            if self._watches_tables or not self.installed:
                return
            for table in virtual.tables_of(self._model()):
                tokens = virtual.VirtualTokens(self.state, table)
                self._hooks.append(table.register_forward_pre_hook(tokens.before))
                self._hooks.append(table.register_forward_hook(tokens.after))
            self._watches_tables = True

    def _count_positions(self, module: nn.Module, args: Any, kwargs: dict[str, Any] | None = None) -> Any:
        """Pre-hook of a model around the stack (text with pictures): set positions, as it would count padding too."""
        current = self.state.current
        if current is None or kwargs is None or not any(current.offsets):
            return None
        arguments = by_name(parameters_of(module), args, kwargs)
        if arguments.get("position_ids") is None:
            arguments["position_ids"] = positions.counted(arguments)
        return (), arguments

    @contextmanager
    def active(self, attachment: Attachment) -> Iterator[None]:
        """Make `attachment` current in this context. The hooks are installed if they are not."""
        this_pass = self.state.this_pass
        past, this_pass.past = this_pass.past, 0
        block, entered = self.open(), None
        try:
            entered = contexts.enter(self.state.owner, attachment, block)
            if attachment.has_embeddings:
                self.watch_tables()
            yield
        finally:
            contexts.leave(block, entered)
            del block, entered  # a traceback keeps this frame; the hooks must not stay with it
            this_pass.past = past


_INJECTORS: WeakKeyDictionary[nn.Module, Injector] = WeakKeyDictionary()


def injector_of(model: nn.Module, slots: ModelSlots) -> Injector:
    """Return the injector of `model`."""
    with changing_models():
        found = _INJECTORS.get(model)
        if found is None:
            found = _INJECTORS[model] = Injector(model, slots)
        return found


def attached(model: nn.Module) -> Attachment:
    """Return what is attached to `model` in this context. Raises `AttachError` if nothing is."""
    injector = _INJECTORS.get(model)
    attachment = None if injector is None else injector.state.current
    if attachment is None:
        raise AttachError("nothing is attached in this thread or task; open an attach first")
    return attachment


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
    Other contexts (threads, tasks) are not affected. An inner attach replaces the outer one until it ends.
    Raises `AttachError` if packing is not possible.
    On the cache route raises `PrefixMismatchError` or `PositionError` for prefixes that it can't attach.
    """
    if slots.route == "cache":
        cached.require(slots, rows)
    if packed is not None:
        _require_packable(slots, rows, packed)
    floating = [p for p in model.parameters() if p.is_floating_point()]
    parameter = next((p for p in floating if p.device.type != "meta"), floating[0])  # offloaded ones are on meta
    attachment = Attachment(rows, parameter, backend, packed)
    try:
        with injector_of(model, slots).active(attachment):
            yield
    finally:
        attachment.masks.clear()


def switch(model: nn.Module, slots: ModelSlots, rows: Sequence[Prefix | None]) -> None:
    """Replace the prefixes of the open attach by `rows`, until it ends. Other contexts are not affected.

    Raises `AttachError` if this context has no open attach, or if packed rows are attached.
    """
    before, injector = attached(model), injector_of(model, slots)
    if before.packed is not None:
        raise AttachError("packed rows are attached; end that attach first")
    if slots.route == "cache":
        cached.require(slots, rows)
    attachment = before.with_rows(rows)
    if attachment.has_embeddings:
        injector.watch_tables()
    contexts.replace(injector.state.owner, attachment)


def carried(model: nn.Module, slots: ModelSlots, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function`, to be called in any thread with what is attached here; see `FrozenModel.carry`."""
    attachment, injector = attached(model), injector_of(model, slots)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with injector.active(attachment):
            return function(*args, **kwargs)

    return call


def installed(model: nn.Module) -> bool:
    """Return True if hooks are on `model`: some context has something attached."""
    injector = _INJECTORS.get(model)
    return injector is not None and injector.installed


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


def _configs(stacks: list[nn.Module]) -> list[Any]:
    """Return every distinct config object in the stacks. Attention modules and mask code read them."""
    modules = [module for stack in stacks for module in stack.modules()]
    configs = {id(config): config for module in modules if (config := getattr(module, "config", None))}
    return [config for config in configs.values() if hasattr(config, "_attn_implementation")]
