"""Recovery: a short training of what is left of a prefix against the outputs of the whole one.

    minimise KL(teacher ‖ student) = Σ_v p_T(v) · (log p_T(v) − log p_S(v)), mean over target tokens

as in distillation at temperature 1 (Hinton et al. 2015). The teacher needs no second model: the same frozen base with
the uncompressed prefix attached. What is trained is what is stored: SVD factors, int8 values by a straight-through
gradient, the kept tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from foreword.compression.forms import Student
from foreword.data.examples import Example
from foreword.data.order import batches
from foreword.errors import NonFiniteError
from foreword.models import Base
from foreword.prefix import Prefix
from foreword.tasks.lm import Batch, collate, target_logits

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

    The rate falls linearly from `lr`; rows come in the order of `seed`. No promise that the student gets better on
    other rows: measure both. Raises `NonFiniteError` before an update that a NaN or infinity would spoil.
    """
    student.to(base.device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0)
    order = batches([example.num_tokens for example in examples], batch_size, seed)
    losses: list[float] = []
    for step, indices in zip(range(steps), order, strict=False):
        chosen = [examples[index] for index in indices]
        loss = divergence(base, teacher, student(), collate(chosen, base))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm, value = torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP), float(loss.detach())
        if not (math.isfinite(value) and bool(torch.isfinite(norm))):
            rows = ", ".join(example.where for example in chosen)
            raise NonFiniteError(
                f"recovery step {step + 1}: loss {value}, gradient norm {float(norm)} (rows {rows}); "
                "a lower lr may help"
            )
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        optimizer.step()
        losses.append(value)
    return losses


def divergence(base: Base, teacher: Prefix, student: Prefix, batch: Batch) -> Tensor:
    """KL(teacher ‖ student) in nats, mean over the target tokens of `batch`; differentiable in the student's tensors."""
    with torch.no_grad(), base.attach(teacher):
        wanted = target_logits(base, batch).log_softmax(-1)
    with base.attach(student):
        got = target_logits(base, batch).log_softmax(-1)
    return (wanted.exp() * (wanted - got)).sum(-1).mean()
