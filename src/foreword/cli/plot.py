"""Small plots of losses for the terminal: of one run in braille characters, 2 × 4 dots each; of several in letters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from rich.text import Text

HEIGHT = 4  # lines
TALL, WIDEST = 12, 100  # lines and columns of a plot of several runs
SEVERAL = "*"  # where more than one of them is
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


def overlay(series: Sequence[tuple[str, Sequence[Point]]], width: int) -> list[str]:
    """Return `TALL` lines with the curves of several runs, each in its letter, and one with the steps.

    series: (letter, points in order). width: most characters of a line. None if there is too little to see.
    """
    every = [point for _, points in series for point in points if math.isfinite(point[1])]
    if len({step for step, _ in every}) < 2 or width < 24:
        return []
    steps, losses = [step for step, _ in every], [loss for _, loss in every]
    frame = (min(steps), max(steps), min(losses), max(losses))
    names = [f"{frame[3]:8.4g} ", *[" " * 9] * (TALL - 2), f"{frame[2]:8.4g} "]
    columns = min(WIDEST, width - len(names[0]))
    cells = [[" "] * columns for _ in range(TALL)]
    ends = []
    for mark, points in series:
        row = column = 0
        for column, loss in _filled(_means(points, frame, columns), frame, columns):
            row = TALL - 1 - _place(loss, frame[2], frame[3], TALL)
            cells[row][column] = mark if cells[row][column] in (" ", mark) else SEVERAL
        ends += [(row, column, mark)] if points else []
    for row, column, mark in ends:  # each letter is there, even where another curve goes on
        cells[row][column] = mark
    first, last = f"step {frame[0]:,.0f}", f"{frame[1]:,.0f}"
    under = " " * 9 + first + last.rjust(columns - len(first))
    return [*(name + "".join(line).rstrip() for name, line in zip(names, cells, strict=True)), under]


def _filled(points: Sequence[Point], frame: tuple[float, float, float, float], columns: int) -> list[tuple[int, float]]:
    """Return (column, loss) of points and of the columns between them, where a straight line leads from one to the
    next."""
    placed = [(_place(step, frame[0], frame[1], columns), loss) for step, loss in points]
    filled = placed[:1]
    for (before, start), (column, loss) in pairwise(placed):
        rise = (loss - start) / max(1, column - before)
        filled += [(at, start + rise * (at - before)) for at in range(before + 1, column + 1)]
    return filled


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
