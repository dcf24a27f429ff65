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

    def share(self, rows: Sequence[T]) -> list[T]:
        """This process's part of `rows`: every `count`-th, beginning with its rank."""
        return list(rows[self.rank :: self.count])

    def sum_gradients(self, parameters: Sequence[Tensor], numbers: Sequence[float]) -> list[float]:
        """Sum the parameters' gradients and `numbers` over all processes; returns the sums of `numbers`."""
        if self.count == 1:
            return list(numbers)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        wide = torch.promote_types(parameters[0].dtype, torch.float32)
        extra = torch.tensor(numbers, dtype=wide, device=self._device)
        grads: list[Tensor] = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([*(grad.flatten().to(wide) for grad in grads), extra])
        dist.all_reduce(flat)
        pieces = torch.split(flat, [*(grad.numel() for grad in grads), len(numbers)])
        for grad, piece in zip(grads, pieces[:-1], strict=True):
            grad.copy_(piece.view_as(grad))
        return [float(value) for value in pieces[-1]]

    def sum(self, *numbers: float) -> list[float]:
        """Sums over all processes, float64."""
        if self.count == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        return [float(value) for value in total]

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
        if self.count > 1:
            dist.barrier()


def leave_processes() -> bool:
    """End this process's part in a launch. Returns whether it is the main one, or the only one."""
    if not dist.is_initialized():
        return True
    main = dist.get_rank() == 0
    dist.destroy_process_group()
    return main
