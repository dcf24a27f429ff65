"""Losses that are read late, so that no step waits for a GPU.

A step's loss and gradient norm are copied to the host behind its other work, and read when the next step has been
launched. Until then the device itself sees to it that nothing is updated with what isn't finite: fused AdamW leaves
parameters and moments alone where `found_inf` is set, as it does for a gradient scaler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foreword.data import Item


def reads_late(device: torch.device, processes: int) -> bool:
    """Return True on a GPU with one process. Several processes exchange numbers at each step anyway."""
    return device.type == "cuda" and processes == 1


def guard(optimizer: torch.optim.AdamW, loss: Tensor, norm: Tensor) -> None:
    """Let the next step of a fused `optimizer` do nothing if `loss` or `norm` is not finite."""
    holder: Any = optimizer
    holder.grad_scale = None
    holder.found_inf = (~(torch.isfinite(loss) & torch.isfinite(norm))).to(torch.float32)


class Later:
    """Numbers on their way from the device."""

    def __init__(self, *numbers: Tensor) -> None:
        together = torch.stack([number.detach().to(torch.float32) for number in numbers])
        self._host = together.to("cpu", non_blocking=True)
        self._event = None
        if together.device.type == "cuda":
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def read(self) -> list[float]:
        """Waits for the work that was launched before they were asked for, and for nothing else."""
        if self._event is not None:
            self._event.synchronize()
        values: list[float] = self._host.tolist()
        return values


class Unread(NamedTuple):
    """A step that is not reported yet. units: what its items count for; began: by the performance counter."""

    step: int
    items: Sequence[Item]
    rate: float
    units: float
    began: float
    later: Later | None = None
