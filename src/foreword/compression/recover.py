"""Recovery: train a compressed prefix for a few steps to give the outputs of the uncompressed one.

    minimise KL(teacher ‖ student) = Σ_v p_T(v) · (log p_T(v) − log p_S(v)), mean over target tokens

as in distillation at temperature 1 (Hinton et al. 2015). The teacher is the same frozen base with the uncompressed
prefix attached, so no second model is needed. The stored tensors are trained: SVD factors, int8 values by a
straight-through gradient, or the kept tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foreword import status
from foreword.base import Base
from foreword.compression.forms import Student
from foreword.data.lm_rows import Example
from foreword.data.order import batches
from foreword.errors import NonFiniteError
from foreword.methods.base import ParameterGroup
from foreword.prefix import Prefix
from foreword.tasks.lm import Batch, collate, target_logits
from foreword.training.update import Update

CLIP = 1.0


def recover(
    base: Base,
    teacher: Prefix,
    student: Student,
    examples: Sequence[Example],
    *,
    steps: int,
    lr: float,
    batch_size: int = 16,
    seed: int = 0,
) -> list[float]:
    """Train `student` in place with AdamW, and return the divergence of each step's batch, in nats per target token.

    The rate falls linearly from `lr`; `seed` gives the order of rows. The student may not get better on other rows, so
    measure it before and after. Raises `NonFiniteError`, before the update, if loss or gradient is NaN or infinite.
    """
    student.to(base.device)
    update = Update([ParameterGroup(list(student.parameters()))], lr, clip=CLIP)
    order = batches([example.num_tokens for example in examples], batch_size, seed)
    losses: list[float] = []
    for step, indices in zip(range(steps), order, strict=False):
        chosen = [examples[index] for index in indices]
        loss = divergence(base, teacher, student(), collate(chosen, base))
        torch.autograd.backward(loss)
        value = float(loss.detach())
        update.set_rate(lr * (1 - step / steps))
        if (quantity := update.apply(value)) is not None:
            rows = ", ".join(example.where for example in chosen)
            raise NonFiniteError(
                f"recovery step {step + 1}: the {quantity} is not finite, {value:g} (rows {rows}); a lower lr may help"
            )
        losses.append(value)
        status.doing("recovering", step + 1, steps, f"divergence {value:.4f}")
    return losses


def divergence(base: Base, teacher: Prefix, student: Prefix, batch: Batch) -> Tensor:
    """Return KL(teacher ‖ student) in nats, the mean over the target tokens of `batch`.

    It is differentiable with respect to the student's tensors.
    """
    with torch.no_grad(), base.attach(teacher):
        teacher_log = target_logits(base, batch).log_softmax(-1)
    with base.attach(student):
        student_log = target_logits(base, batch).log_softmax(-1)
    return (teacher_log.exp() * (teacher_log - student_log)).sum(-1).mean()
