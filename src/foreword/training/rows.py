"""The rows of a run: training and held-out items of its task, or of each task of its mixture."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from foreword import status
from foreword.base import Base
from foreword.config import DataConfig, TrainConfig
from foreword.data import BadRow, Item, Reading
from foreword.data.examples import broken_field, room
from foreword.data.order import HELD_OUT, WINDOW, batches, held_out
from foreword.data.readers import read_rows
from foreword.data.rows import Row
from foreword.data.views import Chosen, token_counts, without
from foreword.errors import ConfigError
from foreword.methods import get_method
from foreword.settings import build, of_each_task
from foreword.tasks import Mixture, Task, make_task, settings_of
from foreword.tasks.mixture import MixtureRows


@dataclass(frozen=True)
class RunRows:
    """training, held_out: items of the task. bad: rows of both that can't be used."""

    training: Sequence[Item]
    held_out: Sequence[Item]
    bad: list[BadRow]


class BatchSource(Protocol):
    """Where a run's batches come from: rows of a file, or whatever else makes them."""

    @property
    def num_rows(self) -> int:
        """Rows that it draws from; 0 where batches are made."""

    def batches(self, done: int) -> Iterator[Sequence[Item]]:
        """The batches of update `done` + 1, `done` + 2, … Has to give the same ones again after a resumption."""


class RowBatches:
    """Batches of rows in seeded order, without end."""

    def __init__(self, task: Task[Any], items: Sequence[Item], config: TrainConfig) -> None:
        self._task, self._items, self._config = task, items, config

    @property
    def num_rows(self) -> int:
        return len(self._items)

    def batches(self, done: int) -> Iterator[Sequence[Item]]:
        order = order_of(self._task, self._items, self._config, done)
        return ([self._items[index] for index in indices] for indices in order)


def task_of(base: Base, config: TrainConfig) -> Task[Any]:
    """The task of a run, or the mixture of its tasks. Raises `ConfigError`."""
    if not config.mixture:
        if not config.data:
            raise ConfigError("data", "name a file of examples")
        return make_task(base, config.task, settings_of(vars(config)))
    if config.data or config.validation or config.template:
        raise ConfigError(
            "mixture", "has data, validation and template for each of its tasks; leave them out elsewhere"
        )
    tasks = {}
    for name, values in config.mixture.items():
        settings = _settings(name, values)
        tasks[name] = make_task(base, settings["task"], settings_of(settings | {"packing": config.packing}))
    return Mixture(base, tasks)


def _settings(name: str, values: Any) -> dict[str, Any]:
    """The checked settings of one task of a mixture."""
    if not isinstance(name, str) or not name.replace("_", "").replace("-", "").isalnum():
        raise ConfigError("mixture", f"{name!r} must be a text of letters, digits, - and _")
    if not isinstance(values, Mapping):
        raise ConfigError("mixture", f"{name}: must be settings, not {values!r:.60}")
    if odd := sorted(set(values) - of_each_task(TrainConfig)):
        raise ConfigError("mixture", f"{name}: {odd[0]!r} is none of {', '.join(sorted(of_each_task(TrainConfig)))}")
    if not values.get("data"):
        raise ConfigError("mixture", f"{name}: data: name a file of examples")
    if not isinstance(values.get("validation"), str | None):
        raise ConfigError("mixture", f"{name}: validation: must be text, not {values['validation']!r:.60}")
    known = {key: value for key, value in values.items() if key not in ("validation",)}
    checked = build(DataConfig, known, f"mixture: {name}")
    return {key: getattr(checked, key) for key in of_each_task(TrainConfig) - {"validation"}} | {
        "validation": values.get("validation")
    }


def load_rows(task: Task[Any], config: TrainConfig) -> RunRows:
    """Read every row of a run; the task learns its labels from the training rows. Raises `DataError`."""
    most = config.max_tokens or room(task.base, config.length)
    if not isinstance(task, Mixture):
        return _load(task, config, config.data, config.validation, most)
    training: dict[str, Sequence[Item]] = {}
    held: dict[str, Sequence[Item]] = {}
    bad: list[BadRow] = []
    for name, single in task.tasks.items():
        values = config.mixture[name]
        data = _load(single, config, str(values["data"]), values.get("validation"), most)
        training[name], held[name] = data.training, data.held_out
        bad.extend(data.bad)
    task.collect_heads()
    return RunRows(MixtureRows(training), MixtureRows(held), bad)


def _load(task: Task[Any], config: TrainConfig, data: str, validation: str | None, most: int) -> RunRows:
    reading = Reading(max_tokens=most, max_bad_rows=config.max_bad_rows)
    task.learn(_Fields(data))
    items, bad = task.load(data, reading)
    if validation is not None:
        reading = replace(reading, limit=config.validation_rows, split="validation")
        measured, more = task.load(validation, reading)
        return RunRows(items, measured, bad + more)
    chosen = held_out(len(items), config.validation_rows or HELD_OUT, config.seed)
    if not chosen:
        raise ConfigError("validation", f"{len(items)} row is too few to hold some out; name a validation file")
    return RunRows(without(items, chosen), Chosen(items, chosen), bad)


class _Fields:
    """The fields of each readable row of a source, read when they are asked for: many tasks don't."""

    def __init__(self, source: str) -> None:
        self._source = source

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rows = status.counted(read_rows(self._source), f"reading {Path(self._source).name}")
        read = (row.fields for row in rows if isinstance(row, Row))
        return (fields for fields in read if broken_field(fields) is None)


def order_of(task: Task[Any], items: Sequence[Item], config: TrainConfig, start: int) -> Iterator[list[int]]:
    """Indices of the rows of batch `start`, `start + 1`, … without end."""
    inserted = get_method(config.method).kind(task.base.model).inserted
    window = WINDOW if task.pads(items, inserted) else 1
    return batches(token_counts(items), config.batch_size, config.seed, start, window)


def digest(items: Sequence[Item]) -> str:
    """SHA-256 of what a run depends on."""
    hashed = hashlib.sha256()
    for item in status.counted(items, "hashing rows", len(items)):
        hashed.update(repr(item.content).encode())
    return "sha256:" + hashed.hexdigest()
