"""Validation: the loss of held-out rows, measured with the prefix as it would be stored."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from foreword import status
from foreword.data import Item
from foreword.errors import NonFiniteError
from foreword.prefix import Prefix
from foreword.tasks import Measuring, Task, summed_loss
from foreword.training.events import Sampled
from foreword.training.processes import Processes


class Validation:
    """Measures the held-out rows of a run. items: those that are measured. batch_size: rows at once.

    asked: called after each batch; what it raises ends the validation. seconds: how long the last one took.
    """

    def __init__(
        self,
        task: Task[Any],
        items: Sequence[Item],
        batch_size: int,
        processes: Processes,
        asked: Callable[[], None],
    ) -> None:
        self.items, self.seconds = items, 0.0
        self._task, self._batch_size, self._processes, self._asked = task, batch_size, processes, asked

    def loss(self, prefix: Prefix, step: int) -> float:
        """Return the mean loss in nats. Raises `NonFiniteError` if it is not finite."""
        began, done = time.perf_counter(), 0
        status.doing("validating", 0, len(self.items))

        def advance(rows: int) -> None:
            nonlocal done
            done += rows * self._processes.count
            status.doing("validating", min(done, len(self.items)), len(self.items))
            self._asked()

        part = self._processes.rank, self._processes.count
        sums = summed_loss(self._task, self.items, prefix, self._batch_size, advance, part)
        total, count = self._processes.sum(*sums)
        self.seconds = time.perf_counter() - began
        if not math.isfinite(total / count):
            raise NonFiniteError(f"step {step}: the validation loss is not finite ({total / count})")
        return total / count

    def samples(self, prefix: Prefix, step: int, items: Sequence[Item]) -> list[Sampled]:
        """Answer `items`."""
        texts = self._task.measure(prefix, items, (), Measuring(self._batch_size)).texts
        return [Sampled(step, item.where, text, item.target) for item, text in zip(items, texts, strict=False)]
