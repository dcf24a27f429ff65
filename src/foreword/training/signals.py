"""SIGINT and SIGTERM while a run goes on: finish the part at hand, save, then stop.

A handler answers in one line and notes the signal; the loop asks between the parts of a batch and between the batches
of a validation, so nothing is left half-applied. A second Ctrl-C stops at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from foreword import status

WATCHED = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 1.0  # seconds
AGAIN = "; Ctrl-C again to stop now"


class Signals:
    """Within `with`: `received` is the number of the signal that arrived, or None.

    impatient: a second Ctrl-C, a second or more after the first, raises KeyboardInterrupt at once. Launchers
    pass on to their processes what the terminal sent them already, so there it must not. Outside the main
    thread, where Python takes no signals, it never is anything but None.
    """

    def __init__(self, impatient: bool = True) -> None:
        self._impatient = impatient
        self.received: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in WATCHED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not Python's

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.received is not None and time.monotonic() - self._since > PATIENCE
        if again and number == signal.SIGINT and self._impatient:
            raise KeyboardInterrupt
        if self.received is None:
            self.received, self._since = number, time.monotonic()
            if os.environ.get("RANK", "0") == "0":
                again_stops = number == signal.SIGINT and self._impatient
                status.urgent(f"finishing this step and saving{AGAIN if again_stops else ''}")
