"""Several data sets for one prefix, each with a task and head of its own.

Liu et al. 2022, "P-Tuning v2", §3.2 (multi-task learning): the prefix is shared, the heads are not; afterwards training
goes on for one of them from the shared prefix. Every row weighs the same, whatever its task counts losses by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from foreword.base import Base
from foreword.data import Item
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


class Mixture(Task[MixtureItem]):
    """tasks: name → task. Batches may hold rows of several; each task predicts its own."""

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
        """Gather the tasks' heads, which they have once they know their labels."""
        heads = {f"head-{name}": task.head for name, task in self.tasks.items() if task.head is not None}
        self.head = nn.ModuleDict(heads)  # `train` is taken, so names need something in front
        self.labels = list(dict.fromkeys(label for task in self.tasks.values() for label in task.labels))

    def item(self, fields: Mapping[str, Any], where: str) -> str:
        return "a mixture's tasks read their own rows"

    def pads(self, items: Sequence[MixtureItem], inserted: bool) -> bool:
        of_task = {name: [part.item for part in items if part.task == name] for name in self.tasks}
        return any(task.pads(of_task[name], inserted) for name, task in self.tasks.items())

    def predict(self, prefix: Prefix | None, items: Sequence[MixtureItem]) -> tuple[Predictions, ...]:
        """The predictions of every task that has rows here. A row counts 1, however many predictions it has."""
        made: list[Predictions] = []
        for name, task in self.tasks.items():
            places = [index for index, item in enumerate(items) if item.task == name]
            if places:
                of_task = [items[index].item for index in places]
                units = [task.units(item) for item in of_task]
                made += [_among_all(one, places, units) for one in task.predict(prefix, of_task)]
        return tuple(made)

    def measure(
        self, prefix: Prefix | None, items: Sequence[MixtureItem], metrics: Sequence[str], measuring: Measuring
    ) -> Measurement:
        """Nothing beside the loss: each task is measured on data of its own."""
        return Measurement({}, [])

    def state(self) -> dict[str, Any]:
        return {"task": self.name, "tasks": {name: task.state() for name, task in self.tasks.items()}}


def _among_all(made: Predictions, places: Sequence[int], units: Sequence[float]) -> Predictions:
    """Predictions of some of a batch's items as ones of the whole batch. places: of these items in it."""
    device = made.rows.device
    weights = 1 / torch.tensor(units, dtype=torch.float64, device=device)[made.rows]
    if made.weights is not None:
        weights = weights * made.weights
    return replace(made, rows=torch.tensor(places, device=device)[made.rows], weights=weights)
