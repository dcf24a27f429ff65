"""A run's history file, its trackers, and its observer."""

from __future__ import annotations

from typing import Any

from foreword import status
from foreword.training.events import Event, Observer, Stepped, Validated
from foreword.training.folder import RunFolder
from foreword.training.processes import Processes


class Journal:
    """Events go to history.jsonl, the trackers and the observer, all on the main process.

    A failure of any of them stops every process at the next exchange, as a failing write does. How far the run is, of
    `steps` updates, is told through `foreword.status`.
    """

    def __init__(
        self, folder: RunFolder, processes: Processes, accelerator: Any, observer: Observer | None, steps: int
    ) -> None:
        self._folder, self._processes, self._accelerator = folder, processes, accelerator
        self._observer, self._steps = observer, steps
        self._validation = ""

    def tell(self, event: Event) -> None:
        if isinstance(event, Stepped):
            self.write(vars(event))
            speed = f"{event.tokens_per_second:,.0f} target tokens/s"
            parts = (f"loss {event.loss:.3f}", self._validation, speed)
            status.doing("step", event.step, self._steps, "  ".join(part for part in parts if part))
        elif isinstance(event, Validated):
            self._validation = f"validation {event.validation_loss:.3f}"
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
