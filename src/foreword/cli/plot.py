"""A small plot of losses for the terminal, in braille characters: 2 × 4 dots each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.text import Text

HEIGHT = 4  # lines
MOST = 1000  # losses that are kept; of a longer run the means of two, of four, …
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a character, by row and column
Point = tuple[float, float]


class Curves:
    """The losses of a run by step: those of its batches, and those of its validations."""

    def __init__(self) -> None:
        self.loss: list[Point] = []
        self.validation: list[Point] = []

    def clear(self) -> None:
        self.loss.clear()
        self.validation.clear()

    def add(self, step: int, loss: float) -> None:
        """Add the loss of a batch."""
        self.loss.append((step, loss))
        if len(self.loss) >= MOST:
            pairs = zip(self.loss[::2], self.loss[1::2], strict=False)
            self.loss = [(first[0], (first[1] + second[1]) / 2) for first, second in pairs]

    def plot(self, width: int) -> list[Text]:
        """Return `HEIGHT` lines of at most `width` characters with the largest and the smallest loss at their left;
        none if there is too little to see. Validations are bold.
        """
        every = [point for point in (*self.loss, *self.validation) if math.isfinite(point[1])]
        steps = {step for step, _ in every}
        if len(steps) < 3 or width < 24:
            return []
        low, high = min(loss for _, loss in every), max(loss for _, loss in every)
        names = [f"{high:8.3f} ", *[" " * 9] * (HEIGHT - 2), f"{low:8.3f} "]
        columns = min(60, width - len(names[0]))
        frame = (min(steps), max(steps), low, high)
        thin = _cells(_means(self.loss, frame, columns * 2), frame, columns)
        thick = _cells(self.validation, frame, columns)
        return [_line(name, thin[row], thick[row]) for row, name in enumerate(names)]


def _line(name: str, thin: Sequence[int], thick: Sequence[int]) -> Text:
    line = Text(name, style="dim")
    for dots, bold in zip(thin, thick, strict=True):
        line.append(chr(0x2800 + (dots | bold)), style="bold cyan" if bold else "not dim")
    return line


def _means(points: Sequence[Point], frame: tuple[float, float, float, float], buckets: int) -> list[Point]:
    """Return the mean loss of each of `buckets` equal spans of steps that has any."""
    sums: dict[int, list[float]] = {}
    for step, loss in points:
        if math.isfinite(loss):
            sums.setdefault(_place(step, frame[0], frame[1], buckets), []).append(loss)
    width = (frame[1] - frame[0]) / max(1, buckets - 1)
    return [(frame[0] + bucket * width, sum(losses) / len(losses)) for bucket, losses in sorted(sums.items())]


def _cells(points: Iterable[Point], frame: tuple[float, float, float, float], columns: int) -> list[list[int]]:
    """Return the dots of each character, by line and column."""
    cells = [[0] * columns for _ in range(HEIGHT)]
    first, last, low, high = frame
    for step, loss in points:
        if math.isfinite(loss):
            x = _place(step, first, last, columns * 2)
            y = HEIGHT * 4 - 1 - _place(loss, low, high, HEIGHT * 4)
            cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
    return cells


def _place(value: float, low: float, high: float, count: int) -> int:
    """Return which of `count` places from `low` to `high` a value has."""
    return 0 if high <= low else max(0, min(count - 1, round((value - low) / (high - low) * (count - 1))))
