"""SIGINT and SIGTERM while a run goes on: finish the part at hand, save, then stop.

A handler only notes the signal; the loop asks between the parts of a batch and between the batches of
a validation, so nothing is left half-applied. A second signal stops at once.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

WATCHED = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Within `with`: `received` is the number of the signal that arrived, or None.

    impatient: a second signal raises KeyboardInterrupt at once. Launchers pass a signal on to their
    processes that the terminal sent them already, so there it must not. Outside the main thread, where Python takes no signals, it never is anything but None.
    """

    def __init__(self, impatient: bool = True) -> None:
        self._impatient = impatient
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in WATCHED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and self._impatient:
            raise KeyboardInterrupt
        self.received = number
