"""What is attached to one model now."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from foreword.attach.attachment import Attachment


class State:
    """Shared by all hooks that are installed on one model.

    current: the attachment that forward passes use; None: the plain base. past: tokens cached before this call.
    each_pass: functions that are called when a forward pass begins.
    activate(attachment): a context in which `attachment` is current. It also works after the hooks have been removed,
    since a backward pass may recompute a forward after the attach has ended.
    """

    def __init__(self, activate: Callable[[Attachment], AbstractContextManager[None]]) -> None:
        self.current: Attachment | None = None
        self.past: int | Tensor = 0
        self.each_pass: list[Callable[[], None]] = []
        self.activate = activate

    def start_pass(self, attachment: Attachment, past: int | Tensor) -> None:
        """Begin a forward pass with `attachment`; `past` tokens are cached."""
        if not torch.compiler.is_compiling():
            attachment.masks.clear()  # layers share masks within a pass; between passes a mask may change in place
        for start in self.each_pass:
            start()
        self.past = past
