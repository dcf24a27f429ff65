"""What a run tells the world: its history file, its trackers, and whoever observes it."""

from __future__ import annotations

from typing import Any

from foreword.training.events import Event, Observer, Stepped, Validated
from foreword.training.folder import RunFolder
from foreword.training.processes import Processes


class Journal:
    """Events go to history.jsonl and the trackers on the main process, and to the observer of this one."""

    def __init__(self, folder: RunFolder, processes: Processes, accelerator: Any, observer: Observer | None) -> None:
        self._folder, self._processes, self._accelerator = folder, processes, accelerator
        self._observer = observer if processes.main else None

    def tell(self, event: Event) -> None:
        if isinstance(event, Stepped):
            self.write(vars(event))
        elif isinstance(event, Validated):
            self.write({"step": event.step, "validation_loss": event.validation_loss})
        if self._observer is not None:
            self._observer(event)

    def write(self, row: dict[str, Any]) -> None:
        """Add a row to the history, and its numbers to the trackers."""
        self._processes.write(lambda: self._folder.append(row))
        numbers = {name: value for name, value in row.items() if name != "step" and isinstance(value, float)}
        if self._processes.main and self._accelerator.trackers and numbers:
            self._accelerator.log(numbers, step=row["step"])
