"""Ctrl-C and SIGTERM end a command at once, with one line; a training run that has begun is saved first.

While a run trains, `foreword.training.signals` has the two signals. Before and after it they unwind the command.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(BaseException):
    """SIGTERM came. As with KeyboardInterrupt, nothing that handles errors handles it; nor does what handles Ctrl-C."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block SIGTERM raises `Terminated`. Out of the main thread nothing changes."""

    def unwind(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
