"""The seam between what a task predicts and what a run minimises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from foreword.errors import ConfigError
from foreword.tasks import Predictions


class Objective(ABC):
    """What a run minimises. It sees predictions, never a model, so it works with every task, method and number of
    processes.

    name: in the registry and in settings. needs_reference: it compares with what the plain base predicts for the same
    rows, without gradients; the loop then runs the base without the prefix too.
    """

    name: ClassVar[str]
    needs_reference: ClassVar[bool] = False

    @abstractmethod
    def losses(self, predictions: Predictions, reference: Predictions | None) -> Tensor:
        """The loss of each prediction, `[T]`, in nats; differentiable. reference: None unless `needs_reference`."""

    def weighted(self, predictions: Sequence[Predictions], references: Sequence[Predictions]) -> Tensor:
        """The losses of a batch, `[Σ T]`, each times what its prediction counts for.

        Raises `ConfigError` if a reference has other predictions than the prefix's.
        """
        if not self.needs_reference:
            return torch.cat([made.weighted(self.losses(made, None)) for made in predictions])
        for made, reference in zip(predictions, references, strict=True):
            if made.targets.shape != reference.targets.shape:
                raise ConfigError("objective", f"{self.name} needs the plain base to predict the same tokens")
        pairs = zip(predictions, references, strict=True)
        return torch.cat([made.weighted(self.losses(made, reference)) for made, reference in pairs])
