"""Ctrl-C and SIGTERM end a command at once, with one line; a training run that has begun is saved first.

While a run trains, `foreword.training.signals` has the two signals. Before and after it they unwind the command. While
Python imports they end the process: libraries that are being initialised abort, or forget, if an exception is raised.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from foreword import status
from foreword.cli import live

WATCHED = (signal.SIGINT, signal.SIGTERM)
_IMPORTING = "<frozen importlib._bootstrap>"


class Terminated(BaseException):
    """SIGTERM came. As with KeyboardInterrupt, nothing that handles errors handles it; nor does what handles Ctrl-C."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block SIGINT raises KeyboardInterrupt and SIGTERM `Terminated`; during an import both end the process.

    A signal that is ignored, as Ctrl-C is in what a shell runs in the background, stays so. Out of the main thread
    nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in WATCHED if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _unwind) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def told(number: int) -> str:
    """The line that says why a command ended."""
    return f"stopped by {signal.Signals(number).name}"


def speaks() -> bool:
    """Whether this is the only process, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


def _unwind(number: int, frame: FrameType | None) -> NoReturn:
    if _importing(frame):
        _leave(number)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False


def _leave(number: int) -> NoReturn:
    """End the process with its line, and give a terminal its cursor back."""
    if (shown := live.shown()) is not None and shown.terminal:
        with suppress(OSError):
            os.write(2, b"\r\x1b[2K\x1b[?25h")
    if speaks():
        status.write_now(told(number))
    os._exit(128 + number)
