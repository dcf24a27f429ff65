"""The training progress bar: step, loss, validation loss, target tokens/s, ETA."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from foreword.training.events import Event, Sampled, Started, Stepped, Validated


class TrainingProgress:
    """An observer of `foreword.train` that draws on a terminal and keeps silent elsewhere."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._console = console
        self._validation = ""
        self._loss = ""
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._task: Any = None

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self._start(event)
        elif isinstance(event, Stepped):
            self._loss = f"loss {event.loss:.3f}  {event.tokens_per_second:,.0f} target tokens/s"
            self._bar.update(self._task, completed=event.step, description=self._text())
        elif isinstance(event, Validated):
            self._validation = f"validation {event.validation_loss:.3f}"
            self._bar.update(self._task, description=self._text())
        elif isinstance(event, Sampled) and self._console.is_terminal:
            self._console.print(f"{event.where}: {event.answer!r} (target {event.target!r})", soft_wrap=True)

    def _start(self, event: Started) -> None:
        for bad in event.bad_rows:
            self._console.print(f"note: left out {bad}", soft_wrap=True)
        self._task = self._bar.add_task(self._text(), total=event.steps, completed=event.done)

    def _text(self) -> str:
        return "  ".join(part for part in (self._loss, self._validation) if part) or "starting"
