"""One change of hooks and classes at a time, and none while something is compiled."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_forked = False  # True in a forked child
_lock = threading.RLock()  # a removal may begin during an install, when the garbage collector ends a block


@contextmanager
def changing_models() -> Iterator[None]:
    """Wait for other changes, and for `torch.compile`.

    It traces a function first and writes its guards afterwards, from what is there then. With hooks that came in
    between, the guards would not be those of the traced code.
    """
    with ExitStack() as held:
        compiler = sys.modules.get("torch._dynamo.convert_frame")
        if compiler is not None and not _forked:
            held.enter_context(compiler.compile_lock)
        held.enter_context(_lock)
        yield


def _after_fork() -> None:
    """Give up the locks: in a forked child, a thread that is not there may hold them."""
    global _lock, _forked
    _lock, _forked = threading.RLock(), True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
