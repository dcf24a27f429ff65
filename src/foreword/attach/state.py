"""`State`: what the hooks on one model share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import count
from typing import Generic, TypeVar

import torch
from torch import Tensor

from foreword.attach import contexts
from foreword.attach.attachment import Attachment

_NUMBERS = count()
Kept = TypeVar("Kept")


class PerThread(threading.local, Generic[Kept]):
    """An object for each thread, made by `make`: what holds for one forward pass, which never leaves its thread.

    The object is kept in `of`, since torch.compile loses what is written to attributes of a `threading.local`.
    """

    def __init__(self, make: Callable[[], Kept]) -> None:
        self.of = make()


class Pass:
    """The forward pass that a thread is in. past: tokens cached before it.

    positions: `[B or 1, n]`, what the stack's table of positions is to read; None: what the stack asks it for.
    """

    def __init__(self) -> None:
        self.past: int | Tensor = 0
        self.positions: Tensor | None = None


class State:
    """What the hooks on one model share.

    owner: the model's name among all that is attached. each_pass: functions that are called when a forward pass begins.
    activate(attachment): a context manager in which `attachment` is current. It also works on other threads and after
    the hooks have been removed, since a backward pass may recompute a forward there and then.
    """

    def __init__(self, activate: Callable[[Attachment], AbstractContextManager[None]]) -> None:
        self.owner = f"model {next(_NUMBERS)}"
        self._passes = PerThread(Pass)
        self.each_pass: list[Callable[[], None]] = []
        self.activate = activate

    @property
    def current(self) -> Attachment | None:
        """The attachment that forward passes in this context use; None: the plain base."""
        return contexts.current(self.owner)

    @property
    def this_pass(self) -> Pass:
        """The forward pass that this thread is in, or its last one."""
        return self._passes.of

    def start_pass(self, attachment: Attachment, past: int | Tensor) -> None:
        """Begin a forward pass with `attachment`; `past` tokens are cached."""
        if not torch.compiler.is_compiling():
            attachment.masks.clear()  # layers share masks within a pass; between passes a mask may change in place
        for start in self.each_pass:
            start()
        self.this_pass.past, self.this_pass.positions = past, None
