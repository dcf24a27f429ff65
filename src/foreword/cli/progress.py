"""The training progress bar: step, loss, validation loss, target tokens/s, ETA."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from foreword.data.readers import BadRow


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

    def started(self, run: Path, steps: int, done: int, bad_rows: list[BadRow]) -> None:
        for bad in bad_rows:
            self._console.print(f"note: left out {bad}", soft_wrap=True)
        if self._task is None:
            self._task = self._bar.add_task(self._text(), total=steps)
        self._bar.update(self._task, completed=done)

    def updated(self, row: dict[str, Any]) -> None:
        self._loss = f"loss {row['loss']:.3f}  {row['tokens_per_second']:,.0f} target tokens/s"
        self._bar.update(self._task, completed=row["step"], description=self._text())

    def validated(self, row: dict[str, Any]) -> None:
        self._validation = f"validation {row['validation_loss']:.3f}"
        if self._task is not None:
            self._bar.update(self._task, description=self._text())

    def _text(self) -> str:
        return "  ".join(part for part in (self._loss, self._validation) if part) or "starting"
