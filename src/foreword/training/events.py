"""What happens in a run, as a stream of events that a terminal, a file and a browser can follow alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from foreword.data import BadRow
from foreword.files import append_line


@dataclass(frozen=True)
class Started:
    """A run begins, or goes on after `done` of its `steps`. bad_rows: left out of the data."""

    run: Path
    steps: int
    done: int
    bad_rows: tuple[BadRow, ...] = ()


@dataclass(frozen=True)
class Stepped:
    """An update was made. loss: of its batch; tokens_per_second: target tokens."""

    step: int
    loss: float
    learning_rate: float
    tokens_per_second: float


@dataclass(frozen=True)
class Validated:
    """The held-out rows were measured. validation_loss: the task's own, in nats. best: it is the lowest so far."""

    step: int
    validation_loss: float
    best: bool


@dataclass(frozen=True)
class Sampled:
    """One held-out row was answered with the present prefix (`TrainConfig.samples`). where: file and line."""

    step: int
    where: str
    answer: str
    target: str


@dataclass(frozen=True)
class Saved:
    """Something complete is on the disk. what: prefix, head, lora or checkpoint."""

    step: int
    what: str
    path: Path


@dataclass(frozen=True)
class Finished:
    """The run is over. validation_loss: the best; stopped_early: patience ran out."""

    run: Path
    step: int
    validation_loss: float
    stopped_early: bool


Event = Started | Stepped | Validated | Sampled | Saved | Finished
Observer = Callable[[Event], None]


def to_row(event: Event) -> dict[str, Any]:
    """An event as JSON values; `event` names it: started, stepped, validated, sampled, saved or finished."""
    return {"event": type(event).__name__.lower()} | {
        item.name: _plain(getattr(event, item.name)) for item in fields(event)
    }


def all_of(*observers: Observer) -> Observer:
    """One observer that tells several, in order."""

    def tell(event: Event) -> None:
        for observer in observers:
            observer(event)

    return tell


class EventFile:
    """An observer that appends every event to a file, one JSON object a line. Raises `StorageError`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, event: Event) -> None:
        append_line(self._path, json.dumps(to_row(event), ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [str(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
