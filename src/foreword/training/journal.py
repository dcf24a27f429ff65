"""A run's history file, its trackers, and its observer."""

from __future__ import annotations

from typing import Any

from foreword.training.events import Event, Observer, Stepped, Validated
from foreword.training.folder import RunFolder
from foreword.training.processes import Processes


class Journal:
    """Events go to history.jsonl, the trackers and the observer, all on the main process.

    A failure of any of them stops every process at the next exchange, as a failing write does.
    """

    def __init__(self, folder: RunFolder, processes: Processes, accelerator: Any, observer: Observer | None) -> None:
        self._folder, self._processes, self._accelerator = folder, processes, accelerator
        self._observer = observer

    def tell(self, event: Event) -> None:
        if isinstance(event, Stepped):
            self.write(vars(event))
        elif isinstance(event, Validated):
            self.write({"step": event.step, "validation_loss": event.validation_loss})
        observer = self._observer
        if observer is not None:
            self._processes.write(lambda: observer(event))

    def write(self, row: dict[str, Any]) -> None:
        """Add a row to the history, and its numbers to the trackers."""
        self._processes.write(lambda: self._folder.append(row))
        numbers = {name: value for name, value in row.items() if name != "step" and isinstance(value, float)}
        if self._processes.main and self._accelerator.trackers and numbers:
            self._accelerator.log(numbers, step=row["step"])
