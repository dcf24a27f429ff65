"""Several processes: each takes its rows of a batch, gradients are summed, the main one writes.

Every process knows the whole order and the whole batch, so a batch is divided without asking anyone,
and its loss is divided by the target tokens of all of it. Gradients, losses and counts travel in one
sum per step, in the parameters' own dtype; a run by one process is the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from foreword.errors import ForewordError, TrainingError

T = TypeVar("T")


class Processes:
    """The processes that Accelerate started. rank, count: this one and how many; main: it writes."""

    def __init__(self, accelerator: Any) -> None:
        self.rank: int = accelerator.process_index
        self.count: int = accelerator.num_processes
        self.main: bool = self.rank == 0
        self._device = accelerator.device
        self._failure: Exception | None = None

    def share(self, rows: Sequence[T]) -> list[T]:
        """This process's part of `rows`: every `count`-th, beginning with its rank."""
        return list(rows[self.rank :: self.count])

    def write(self, action: Callable[[], None]) -> None:
        """Let the main process write something. If it can't, every process raises at the next exchange."""
        if not self.main:
            return
        try:
            action()
        except Exception as error:
            if self.count == 1:
                raise
            self._failure = self._failure or error

    def sum_gradients(self, parameters: Sequence[Tensor], numbers: Sequence[float]) -> list[float]:
        """Sum the parameters' gradients and `numbers` over all processes; returns the sums of `numbers`.

        Raises `TrainingError` on every process (the cause itself on the main one) if `write` failed.
        """
        if self.count == 1:
            return list(numbers)
        wide = torch.promote_types(parameters[0].dtype, torch.float32)
        used = [float(parameter.grad is not None) for parameter in parameters]
        extra = torch.tensor([*used, *numbers, self._failed()], dtype=wide, device=self._device)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([*(grad.flatten().to(wide) for grad in grads), extra])
        dist.all_reduce(flat)
        *pieces, sums = torch.split(flat, [*(grad.numel() for grad in grads), len(extra)])
        self._raise_together(float(sums[-1]))
        for parameter, grad, piece, users in zip(parameters, grads, pieces, sums[: len(used)], strict=True):
            # what no process used (a head whose task is not in the batch) is left alone, as by a single process
            parameter.grad = grad.copy_(piece.view_as(grad)) if float(users) else None
        return [float(value) for value in sums[len(used) : -1]]

    def sum(self, *numbers: float) -> list[float]:
        """Sums over all processes, float64. Raises as `sum_gradients` does."""
        if self.count == 1:
            return list(numbers)
        total = torch.tensor([*numbers, self._failed()], dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        self._raise_together(float(total[-1]))
        return [float(value) for value in total[:-1]]

    def _failed(self) -> float:
        return float(self._failure is not None)

    def _raise_together(self, failures: float) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if failures:
            raise TrainingError("the main process could not write; its message says what")

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` gives on the main process, on every one. Its `ForewordError` is raised on every one too."""
        if self.count == 1:
            return make()
        outcome: list[Any] = [None, None]
        if self.main:
            try:
                outcome[0] = make()
            except ForewordError as error:
                outcome[1] = f"{error}"
                dist.broadcast_object_list(outcome, src=0, device=self._device)
                raise
        dist.broadcast_object_list(outcome, src=0, device=self._device)
        if outcome[1] is not None:
            raise TrainingError(f"the main process stopped: {outcome[1]}")
        made: T = outcome[0]
        return made

    def wait(self) -> None:
        """Until every process is here. Raises as `sum_gradients` does."""
        self.sum()


def leave_processes() -> bool:
    """End this process's part in a launch. Returns whether it is the main one, or the only one."""
    if not dist.is_initialized():
        return True
    main = dist.get_rank() == 0
    dist.destroy_process_group()
    return main
