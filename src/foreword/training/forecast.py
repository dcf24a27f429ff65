"""How long a run takes: said before its first step by what the first validation took, and mended by the first steps."""

from __future__ import annotations

import time
from collections.abc import Callable

from foreword import status
from foreword.training.plan import RATIO

MENDED_AFTER = 5  # steps, the first of which is left out: it is slower
WRONG = 1.3  # times as long, or as short


class Forecast:
    """Says how long the `total` steps of a run take. tokens: of a step, in the mean. validations: still to be made."""

    def __init__(
        self, total: int, tokens: float, validations: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._total, self._tokens, self._validations, self._clock = total, tokens, validations, clock
        self._validation = self._expected = self._began = 0.0
        self._steps = 0

    def announce(self, more: str, seconds: float, tokens: int) -> None:
        """Say how long the run takes, if the validation at its start took `seconds` for `tokens` tokens.

        more: stands behind the number of steps.
        """
        self._validation = seconds
        self._expected = RATIO * self._tokens * seconds / max(1, tokens)
        steps = f"{self._total:,} step{'s' * (self._total != 1)}"
        status.note(f"{steps}{more}, about {status.duration(self._whole(self._total))}")

    def _whole(self, steps: int) -> float:
        return steps * self._expected + self._validations * self._validation

    def stepped(self, step: int) -> None:
        """A step was made. After the first few, say how long the rest takes if that was wrong."""
        self._steps += 1
        if self._steps == 1:
            self._began = self._clock()
        if self._steps != MENDED_AFTER:
            return
        seen, left = (self._clock() - self._began) / (MENDED_AFTER - 1), self._total - step
        wrong = not self._expected or not 1 / WRONG < seen / self._expected < WRONG
        self._expected = seen
        if wrong and left * seen > 1:
            status.note(f"the remaining {left:,} steps take about {status.duration(self._whole(left))}")
