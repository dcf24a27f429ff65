"""One optimizer update: AdamW, clipping, and nothing applied that isn't finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from foreword.methods.base import ParameterGroup
from foreword.training.late import Later, guard


class Update:
    """AdamW (Loshchilov & Hutter 2019) over groups of parameters, with the norm of all gradients clipped together.

    lr: the peak learning rate of a group without one of its own; groups keep their ratio to it. late: read loss and
    gradient norm a step late (see `late`), for which the optimizer is fused.
    """

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        lr: float,
        *,
        weight_decay: float = 0.0,
        clip: float = 1.0,
        late: bool = False,
    ) -> None:
        self.parameters = [parameter for group in groups for parameter in group.parameters]
        self.optimizer = torch.optim.AdamW(
            [{"params": group.parameters, "factor": 1.0 if group.lr is None else group.lr / lr} for group in groups],
            lr=lr,
            weight_decay=weight_decay,
            fused=True if late else None,
        )
        self._clip = clip

    def set_rate(self, rate: float) -> None:
        """The learning rate of the next update."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]

    def apply(self, loss: float) -> str | None:
        """Update with the gradients there are. Returns None, or "loss" or "gradient" if that is not finite.

        Then nothing was updated, and the gradients are gone.
        """
        norm = float(self._clipped_norm())
        what = not_finite(loss, norm)
        if what is None:
            self._step()
        else:
            self.drop()
        return what

    def launch(self, loss: Tensor, before_step: Callable[[], None]) -> Later:
        """Update without waiting for the device. Returns loss and gradient norm, on their way to the host.

        The device itself leaves the parameters alone if one of the two is not finite. before_step: called before the
        update is launched; what it raises prevents the update.
        """
        norm = self._clipped_norm()
        later = Later(loss, norm)
        before_step()
        guard(self.optimizer, loss, norm)
        self._step()
        return later

    def drop(self) -> None:
        """Forget the gradients there are."""
        self.optimizer.zero_grad(set_to_none=True)

    def _clipped_norm(self) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(self.parameters, self._clip)

    def _step(self) -> None:
        self.optimizer.step()
        self.drop()


def not_finite(loss: float, norm: float) -> str | None:
    """Which of the two is NaN or infinite: "loss", "gradient" or None."""
    if not math.isfinite(loss):
        return "loss"
    return None if math.isfinite(norm) else "gradient"
