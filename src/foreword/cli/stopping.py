"""Ctrl-C and SIGTERM end a command at once, with one line; a training run that has begun is saved first.

While a run trains, `foreword.training.signals` has the two signals. Before and after it they unwind the command.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """number: the signal that ends the command. SIGINT comes as Python's own KeyboardInterrupt."""

    number: int = signal.SIGINT

    @property
    def exit_code(self) -> int:
        return 128 + self.number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


@contextmanager
def stopped_by_signals() -> Iterator[Stop]:
    """Within the block SIGTERM raises KeyboardInterrupt, as SIGINT does. Out of the main thread nothing changes."""
    stop = Stop()

    def unwind(number: int, frame: FrameType | None) -> None:
        stop.number = number
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
