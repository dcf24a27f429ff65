"""The rows of a run: training and held-out items of its task, or of each task of its mixture."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from foreword.config import DataConfig, TrainConfig
from foreword.data import BadRow
from foreword.data.order import HELD_OUT, WINDOW, batches, held_out
from foreword.data.readers import Row, read_rows
from foreword.errors import ConfigError
from foreword.methods import METHODS
from foreword.models import Base
from foreword.settings import build
from foreword.tasks import Mixture, Task, make_task, settings_of
from foreword.tasks.mixture import Part

_OF_MIXTURE = {"task", "task_options", "data", "validation", "template", "input_field", "target_field"}


@dataclass(frozen=True)
class Rows:
    """training, held_out: items of the task. bad: rows of both that can't be used."""

    training: list[Any]
    held_out: list[Any]
    bad: list[BadRow]


def task_of(base: Base, config: TrainConfig) -> Task:
    """The task of a run, or the mixture of its tasks. Raises `ConfigError`."""
    if not config.mixture:
        if not config.data:
            raise ConfigError("data", "name a file of examples")
        return make_task(base, config.task, settings_of(vars(config)))
    if config.data or config.validation or config.template:
        raise ConfigError(
            "mixture", "has data, validation and template for each of its tasks; leave them out elsewhere"
        )
    parts = {name: _settings(name, values) for name, values in config.mixture.items()}
    return Mixture(
        base,
        {
            name: make_task(base, own["task"], settings_of(own | {"packing": config.packing}))
            for name, own in parts.items()
        },
    )


def _settings(name: str, values: Any) -> dict[str, Any]:
    """The checked settings of one task of a mixture."""
    if not isinstance(name, str) or not name.replace("_", "").replace("-", "").isalnum():
        raise ConfigError("mixture", f"{name!r} must be a text of letters, digits, - and _")
    if not isinstance(values, Mapping):
        raise ConfigError("mixture", f"{name}: must be settings, not {values!r:.60}")
    if odd := sorted(set(values) - _OF_MIXTURE):
        raise ConfigError("mixture", f"{name}: {odd[0]!r} is none of {', '.join(sorted(_OF_MIXTURE))}")
    if not values.get("data"):
        raise ConfigError("mixture", f"{name}: data: name a file of examples")
    if not isinstance(values.get("validation"), str | None):
        raise ConfigError("mixture", f"{name}: validation: must be text, not {values['validation']!r:.60}")
    known = {key: value for key, value in values.items() if key not in ("validation",)}
    checked = build(DataConfig, known, f"mixture: {name}")
    return {key: getattr(checked, key) for key in _OF_MIXTURE - {"validation"}} | {
        "validation": values.get("validation")
    }


def load_rows(task: Task, config: TrainConfig) -> Rows:
    """Read every row of a run; the task learns its labels from the training rows. Raises `DataError`."""
    most = config.max_tokens or task.base.max_positions - config.length
    if not isinstance(task, Mixture):
        return _load(task, config, config.data, config.validation, most)
    whole = Rows([], [], [])
    for name, own in task.tasks.items():
        values = config.mixture[name]
        rows = _load(own, config, str(values["data"]), values.get("validation"), most)
        whole.training.extend(Part(name, item) for item in rows.training)
        whole.held_out.extend(Part(name, item) for item in rows.held_out)
        whole.bad.extend(rows.bad)
    task.collect_heads()
    return whole


def _load(task: Task, config: TrainConfig, data: str, validation: str | None, most: int) -> Rows:
    settings: dict[str, Any] = {"max_tokens": most, "max_bad_rows": config.max_bad_rows}
    task.learn(_Fields(data))
    items, bad = task.load(data, **settings)
    if validation is not None:
        measured, more = task.load(validation, **settings, limit=config.validation_rows, split="validation")
        return Rows(items, measured, bad + more)
    chosen = held_out(len(items), config.validation_rows or HELD_OUT, config.seed)
    if not chosen:
        raise ConfigError("validation", f"{len(items)} rows are too few to hold some out; name a validation file")
    left_out = set(chosen)
    kept = [item for index, item in enumerate(items) if index not in left_out]
    return Rows(kept, [items[index] for index in chosen], bad)


class _Fields:
    """The fields of each readable row of a source, read when they are asked for: many tasks don't."""

    def __init__(self, source: str) -> None:
        self._source = source

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (row.fields for row in read_rows(self._source) if isinstance(row, Row))


def order_of(task: Task, items: list[Any], config: TrainConfig, start: int) -> Iterator[list[int]]:
    """Indices of the rows of batch `start`, `start + 1`, … without end."""
    inserted = METHODS[config.method].merge(task.base.model) == "embedding"
    window = WINDOW if task.pads(items, inserted) else 1
    return batches([item.num_tokens for item in items], config.batch_size, config.seed, start, window)


def digest(items: list[Any]) -> str:
    """SHA-256 of what a run depends on."""
    hashed = hashlib.sha256()
    for item in items:
        hashed.update(repr(item.content).encode())
    return "sha256:" + hashed.hexdigest()
