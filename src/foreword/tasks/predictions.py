"""What a task predicts for a batch. Tasks make `Predictions`, objectives use them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foreword.tasks.head_loss import head_losses

NEVER = -1e4  # nats


@dataclass(frozen=True)
class Predictions:
    """T predictions, each of one class out of C.

    targets `[T]`: the right classes, int64. rows `[T]`: the item of the batch that each prediction belongs to.
    Either given_logits `[T, C]`, float32 or wider, or hidden `[T, width]` with the frozen output layer `head`, which
    turns them into logits. Both are differentiable with respect to what is trained. The logits of a vocabulary are
    large, so an objective should use `target_losses` and not `logits` if it can.
    weights `[T]`: the weight of each prediction; None: 1.
    """

    targets: Tensor
    rows: Tensor
    given_logits: Tensor | None = None
    hidden: Tensor | None = None
    head: nn.Module | None = None
    weights: Tensor | None = None

    def logits(self) -> Tensor:
        """Return the logits `[T, C]`, float32 or wider."""
        if self.given_logits is not None:
            return self.given_logits
        if self.head is None:
            raise ValueError("predictions need logits, or hidden states and the layer that makes logits of them")
        logits: Tensor = self.head(self.hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def log_probabilities(self) -> Tensor:
        """Return `[T, C]`, in nats. A class that a row does not have gets −10,000 instead of −∞.

        So differences of two of them are finite, and its probability is 0.
        """
        return torch.log_softmax(self.logits(), -1).clamp(min=NEVER)

    def target_losses(self) -> Tensor:
        """Return −log p(target) in nats, `[T]`. With hidden states, not all logits are in memory at once."""
        if self.hidden is not None and self.head is not None:
            return head_losses(self.hidden, self.head, self.targets)
        return F.cross_entropy(self.logits(), self.targets, reduction="none")

    def weighted(self, losses: Tensor) -> Tensor:
        """Return `losses` `[T]` times the weight of each prediction."""
        return losses if self.weights is None else losses * self.weights.to(losses)
