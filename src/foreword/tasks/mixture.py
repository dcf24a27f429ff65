"""Several data sets for one prefix, each with a task and head of its own.

Liu et al. 2022, "P-Tuning v2", §3.2 (multi-task learning): the prefix is shared, the heads are not; afterwards training
goes on for one of them from the shared prefix. Every row weighs the same, whatever its task counts losses by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foreword.models import Base
from foreword.prefix import Prefix
from foreword.tasks.base import Measured, Progress, Task, TaskSettings, pieces


@dataclass(frozen=True)
class Part:
    """An item of one of the tasks."""

    task: str
    item: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.item, name)

    @property
    def content(self) -> Any:
        return self.task, self.item.content


class Mixture(Task):
    """tasks: name → task. Batches may hold rows of several; each task runs its own."""

    name = "mixture"
    metrics = ("loss",)

    def __init__(self, base: Base, tasks: Mapping[str, Task]) -> None:
        super().__init__(base, TaskSettings())
        self.tasks = dict(tasks)

    @property
    def places(self) -> int:
        return max(task.places for task in self.tasks.values())

    def roles(self) -> set[str]:
        return set().union(*(task.roles() for task in self.tasks.values()))

    def collect_heads(self) -> None:
        """Gather the tasks' heads, which they have once they know their labels."""
        self.head = nn.ModuleDict(
            {
                f"head-{name}": task.head for name, task in self.tasks.items() if task.head is not None
            }  # `train` is taken
        )
        self.labels = list(dict.fromkeys(label for task in self.tasks.values() for label in task.labels))

    def item(self, fields: Mapping[str, Any], where: str) -> str:
        raise NotImplementedError("a mixture's tasks read their own rows")

    def pads(self, items: Sequence[Part], inserted: bool) -> bool:
        of = {name: [part.item for part in items if part.task == name] for name in self.tasks}
        return any(task.pads(of[name], inserted) for name, task in self.tasks.items())

    def losses(self, prefix: Prefix | None, items: Sequence[Part]) -> Tensor:
        """One loss per row, the mean of its own."""
        losses: list[Tensor | None] = [None] * len(items)
        for name, task in self.tasks.items():
            rows = [index for index, part in enumerate(items) if part.task == name]
            if not rows:
                continue
            own = [items[index].item for index in rows]
            found = pieces(task.losses(prefix, own), [task.units(item) for item in own])
            for index, piece in zip(rows, found, strict=True):
                losses[index] = piece.mean()
        return torch.stack([loss for loss in losses if loss is not None])

    def measure(
        self, prefix: Prefix | None, items: Sequence[Any], metrics: Sequence[str], batch_size: int, progress: Progress
    ) -> Measured:
        raise NotImplementedError("each task of a mixture is measured on its own data")

    def state(self) -> dict[str, Any]:
        return {"task": self.name, "tasks": {name: task.state() for name, task in self.tasks.items()}}
