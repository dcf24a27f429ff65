"""Several data sets for one prefix, each with its own task and head.

Liu et al. 2022, "P-Tuning v2", §3.2 (multi-task learning): tasks share the prefix but not the heads. Afterwards one
task is trained further from the shared prefix. Every row has the same weight, however many predictions its task makes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import nn

from foreword.base import Base
from foreword.data import Item
from foreword.data.views import Made, Numbers, token_counts
from foreword.placing import placed
from foreword.prefix import Prefix
from foreword.tasks.base import Measurement, Measuring, Task, TaskSettings
from foreword.tasks.predictions import Predictions


@dataclass(frozen=True)
class MixtureItem:
    """An item of one of the tasks."""

    task: str
    item: Item

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self.item.prompt_ids

    @property
    def target_ids(self) -> tuple[int, ...]:
        return self.item.target_ids

    @property
    def target(self) -> str:
        return self.item.target

    @property
    def where(self) -> str:
        return self.item.where

    @property
    def num_tokens(self) -> int:
        return self.item.num_tokens

    @property
    def content(self) -> Any:
        return self.task, self.item.content


class MixtureRows(Made[MixtureItem]):
    """The items of several tasks, one task after another, each made when it is asked for."""

    def __init__(self, parts: Mapping[str, Sequence[Any]]) -> None:
        self._parts = dict(parts)
        self._ends = list(accumulate(len(items) for items in self._parts.values()))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def make(self, number: int) -> MixtureItem:
        place = bisect_right(self._ends, number)
        name, items = list(self._parts.items())[place]
        return MixtureItem(name, items[number - self._ends[place] + len(items)])

    def token_counts(self) -> Numbers:
        return np.concatenate([token_counts(items) for items in self._parts.values()])

    def of(self, name: str) -> Sequence[Any]:
        """Return the items of one task, without its name."""
        return self._parts[name]


class Mixture(Task[MixtureItem]):
    """tasks: name → task. A batch can hold rows of several tasks; each task predicts its own rows."""

    name = "mixture"
    metrics = ("loss",)

    def __init__(self, base: Base, tasks: Mapping[str, Task[Any]]) -> None:
        super().__init__(base, TaskSettings())
        self.tasks = dict(tasks)

    @property
    def places(self) -> int:
        return max(task.places for task in self.tasks.values())

    def roles(self) -> set[str]:
        return set().union(*(task.roles() for task in self.tasks.values()))

    def collect_heads(self) -> None:
        """Collect the tasks' heads. A task has its head as soon as it knows its labels."""
        heads = {f"head-{name}": task.head for name, task in self.tasks.items() if task.head is not None}
        # `head-` in front avoids names that nn.Module uses, such as `train`
        self.head = nn.ModuleDict(heads) if heads else None
        self.labels = list(dict.fromkeys(label for task in self.tasks.values() for label in task.labels))

    def item(self, fields: Mapping[str, Any], where: str) -> str:
        return "a mixture's tasks read their own rows"

    def pads(self, items: Sequence[MixtureItem], inserted: bool) -> bool:
        def of(name: str) -> Sequence[Any]:
            if isinstance(items, MixtureRows):
                return items.of(name)
            return [entry.item for entry in items if entry.task == name]

        return any(task.pads(of(name), inserted) for name, task in self.tasks.items())

    def predict(self, prefix: Prefix | None, items: Sequence[MixtureItem]) -> tuple[Predictions, ...]:
        """Return the predictions of every task with rows in `items`. A row counts 1, with any number of predictions."""
        predictions: list[Predictions] = []
        for name, task in self.tasks.items():
            places = [index for index, item in enumerate(items) if item.task == name]
            if places:
                task_items = [items[index].item for index in places]
                units = [task.units(item) for item in task_items]
                for of_task in task.predict(prefix, task_items):
                    predictions.append(_among_all(of_task, places, units))
        return tuple(predictions)

    def measure(
        self, prefix: Prefix | None, items: Sequence[MixtureItem], metrics: Sequence[str], measuring: Measuring
    ) -> Measurement:
        """Measure nothing but the loss: each task is measured on its own data."""
        return Measurement({}, [])

    def state(self) -> dict[str, Any]:
        return {"task": self.name, "tasks": {name: task.state() for name, task in self.tasks.items()}}


def _among_all(predictions: Predictions, places: Sequence[int], units: Sequence[float]) -> Predictions:
    """Turn predictions of some items into predictions of the whole batch. places, units: of these items."""
    device = predictions.rows.device
    weights = 1 / placed(units, device, torch.float64)[predictions.rows]
    if predictions.weights is not None:
        weights = weights * predictions.weights
    return replace(predictions, rows=placed(places, device)[predictions.rows], weights=weights)
