"""What a run's settings come to where they are left open: by counts of rows and tokens, so a resumption gets the same.

An update costs about twice as much per token as a validation: the base is frozen, so its backward pass computes no
gradients of weights (measured on SmolLM2-135M: 1.7 to 2.0).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from foreword.config import TrainConfig
from foreword.data import Item
from foreword.data.views import spread, token_counts
from foreword.training.schedule import warmup_steps

SHARE = 0.1  # of training's cost: what validation may take by default
LEAST_RATIO = 1.5  # an update's cost per token, in validations'; the least that was seen, with a margin
RATIO = 2.0  # the same as expected
VALIDATIONS = 10  # after the one at the start, where they are cheap
WARMUP, MOST_WARMUP = 0.05, 10  # of the steps; steps
FEW_STEPS, FEW_ROWS = 20, 20


def planned(config: TrainConfig, training: Sequence[Item], held_out: Sequence[Item], steps: int) -> TrainConfig:
    """Return `config` with warm-up and validations worked out for a run of so many steps."""
    warmup = config.warmup
    if warmup is None:
        warmup = min(MOST_WARMUP, max(1, round(WARMUP * steps)))
    every, share = config.validate_every, config.validation_share
    if every is None:
        share = SHARE if share is None else share
        allowed = _allowed(config, training, steps, share) // max(1, int(token_counts(held_out).sum()))
        every = math.ceil(steps / min(VALIDATIONS, max(1, int(allowed) - 1)))
    return dataclasses.replace(config, warmup=warmup, validate_every=every, validation_share=share)


def measured_rows(
    config: TrainConfig, training: Sequence[Item], held_out: Sequence[Item], steps: int
) -> Sequence[Item]:
    """Return the held-out rows that each validation measures: all, or as many as the share allows in a short run.

    config: as `planned` returns it. Rows that the config asks for by their number are all measured.
    """
    if config.validation_share is None or config.validation_rows != TrainConfig.validation_rows:
        return held_out
    validations = 1 + math.ceil(steps / int(config.validate_every or steps))
    allowed = _allowed(config, training, steps, config.validation_share) / validations
    mean = float(token_counts(held_out).mean())
    return spread(held_out, max(1, int(allowed / mean)))


def _allowed(config: TrainConfig, training: Sequence[Item], steps: int, share: float) -> float:
    """Return the tokens that all validations may read together."""
    return share * LEAST_RATIO * steps * step_tokens(config, training)


def step_tokens(config: TrainConfig, training: Sequence[Item]) -> float:
    """Return the mean number of tokens of an update."""
    return float(token_counts(training).mean()) * min(config.batch_size, len(training))


def shortcomings(
    config: TrainConfig, training: Sequence[Item], measured: Sequence[Item], held_out: Sequence[Item]
) -> list[str]:
    """Return what a run can't do because it is short; empty for a run of ordinary length.

    config: resolved. measured: the rows of each validation, of those held out.
    """
    said, steps = [], int(config.steps or 1)
    if steps < FEW_STEPS:
        said.append(f"{_count(steps, 'step')}, after which the loss is likely to be still falling (--steps, --epochs)")
    if len(training) < config.batch_size:
        said.append(f"{_count(len(training), 'training row')}, fewer than a batch of {config.batch_size}")
    if len(measured) < FEW_ROWS:
        of = "" if len(measured) == len(held_out) else f" of {len(held_out)}"
        why = "more with --validation" if not of else "all with --validation-rows null or --validation-share"
        said.append(f"a validation loss of {len(measured)}{of} held-out row{'s' * (len(held_out) != 1)}, which says "
                    f"little ({why})")  # fmt: skip
    if (warmup := warmup_steps(config.warmup, steps)) >= steps > 1:
        said.append(f"a warm-up of {warmup:,} steps, so that the learning rate never gets beyond its peak")
    return said


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
