"""`cross-entropy`: −log p(target), the likelihood of the right answers (Li & Liang 2021, eq. 5)."""

from __future__ import annotations

from torch import Tensor

from foreword.objectives.base import Objective
from foreword.tasks import Predictions


class CrossEntropy(Objective):
    name = "cross-entropy"

    def losses(self, predictions: Predictions, reference: Predictions | None) -> Tensor:
        return predictions.target_losses()
