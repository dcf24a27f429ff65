"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math


def warmup_steps(warmup: float | None, total: int) -> int:
    """Return the steps of warm-up of a run of `total` steps. warmup: steps, or below 1 a share of them; None: none."""
    if warmup is None:
        return 0
    return math.ceil(warmup * total) if isinstance(warmup, float) else warmup


def learning_rate(step: int, total: int, peak: float, warmup: int, final: float, kind: str) -> float:
    """Rate of update `step` (1-based) of `total`: linear warm-up over `warmup` updates to `peak`, then
    linear, cosine or no decay towards `final` · peak, which the update after the last one would have: with 0 none is
    lost."""
    if step <= warmup:
        return peak * step / warmup
    if kind == "constant":
        return peak
    done = (step - warmup) / (total - warmup + 1)
    share = 1 - done if kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return peak * (final + (1 - final) * share)
