"""What a run's history.jsonl says. It is read once, line by line; a summary parses few of the lines."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from foreword.files import Unreadable, byte_lines, parse_json

HISTORY = "history.jsonl"
MOST_POINTS = 1000  # of a curve; a longer one becomes means of equally many updates
MOST_STEP = 10**12
_MOST = 2**28  # bytes, as many as a run reads again
_LONGEST = 2**16  # bytes of a line; real ones have about a hundred
_TAIL = 8  # last updates that are parsed until one can be read
_NUMBERS = ("step", "loss", "learning_rate", "tokens_per_second", "validation_loss")  # names that have a meaning here
Point = tuple[float, float]  # step and loss


@dataclass
class Summary:
    """The ends of a history. step: updates done. stale: validations since the best one.

    metrics: other numbers that the best validation has. failed_at: the step that was refused, as it wasn't finite.
    problems: what could not be read, in words.
    """

    step: int | None = None
    last_loss: float | None = None
    first_loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    stale: int = 0
    failed_at: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def _validated(self, row: dict[str, Any]) -> None:
        loss, self.step = row["validation_loss"], max(self.step or 0, row["step"])
        if self.first_loss is None:
            self.first_loss = loss
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.best_step, self.stale = loss, row["step"], 0
            self.metrics = {name: value for name, value in row.items() if name not in _NUMBERS and _number(value)}
        else:
            self.stale += 1

    def _stepped(self, recent: deque[bytes]) -> None:
        """Take the newest update that can be read."""
        rows = (row for line in reversed(recent) if (row := _row(line)) is not None and "loss" in row)
        if (newest := next(rows, None)) is not None:
            self.step, self.last_loss = max(self.step or 0, newest["step"]), newest["loss"]
        elif recent:
            self.problems.append(f"{HISTORY}: none of its last updates can be read")


def summarise(file: Path) -> Summary:
    """Return what `file` comes to. Nothing is raised: a line that can't be read is left out and told."""
    told, recent, damaged = Summary(), deque[bytes](maxlen=_TAIL), 0
    try:
        for line in byte_lines(file, _MOST, _LONGEST):
            if b'"validation_loss"' not in line and b'"not_finite"' not in line:
                recent.append(line)
            elif (row := _row(line)) is None:
                damaged += 1
            elif "not_finite" in row:
                told.failed_at = row["step"]
            elif "validation_loss" in row:
                told._validated(row)
    except Unreadable as error:
        told.problems.append(f"{HISTORY} {error}")
    if damaged:
        told.problems.append(f"{HISTORY}: {_lines(damaged)} can't be read")
    told._stepped(recent)
    return told


@dataclass(frozen=True)
class Curves:
    """The losses of a run: means of its updates' losses, and every validation's.

    speed: target tokens per second, the median of the updates. problems: as in `Summary`.
    """

    training: tuple[Point, ...] = ()
    validation: tuple[Point, ...] = ()
    speed: float | None = None
    problems: tuple[str, ...] = ()


def curves(file: Path) -> Curves:
    """Return the losses in `file`. Nothing is raised, as in `summarise`."""
    training, validation, speeds = _Thinned(), _Thinned(), deque[float](maxlen=MOST_POINTS)
    problems, damaged = [], 0
    try:
        for row in map(_row, byte_lines(file, _MOST, _LONGEST)):
            damaged += row is None
            if row is None:
                continue
            for name, kept in (("loss", training), ("validation_loss", validation)):
                if name in row:
                    kept.add(row["step"], row[name])
            if _number(row.get("tokens_per_second")):
                speeds.append(row["tokens_per_second"])
    except Unreadable as error:
        problems.append(f"{HISTORY} {error}")
    if damaged:
        problems.append(f"{HISTORY}: {_lines(damaged)} can't be read")
    speed = median(speeds) if speeds else None
    return Curves(tuple(training.all()), tuple(validation.all()), speed, tuple(problems))


def thinned(points: Sequence[Point], most: int) -> tuple[Point, ...]:
    """Return at most about `most` points: means of equally many."""
    kept = _Thinned(most)
    for step, loss in points:
        kept.add(step, loss)
    return tuple(kept.all())


class _Thinned:
    """Points in order, at most `most` and a last one: of more each is the mean of two, of four, …"""

    def __init__(self, most: int = MOST_POINTS) -> None:
        self._most = most
        self._points: list[Point] = []
        self._pending: list[Point] = []
        self._stride = 1

    def add(self, step: float, loss: float) -> None:
        self._pending.append((step, loss))
        if len(self._pending) == self._stride:
            self._points.append(_mean(self._pending))
            self._pending = []
        if len(self._points) >= self._most:
            self._points = [_mean(pair) for pair in zip(self._points[::2], self._points[1::2], strict=False)]
            self._stride *= 2

    def all(self) -> Iterator[Point]:
        yield from self._points
        if self._pending:
            yield _mean(self._pending)


def _mean(points: list[Point] | tuple[Point, Point]) -> Point:
    if len(points) == 1:
        return points[0]
    return sum(step for step, _ in points) / len(points), math.fsum(loss / len(points) for _, loss in points)


def _row(line: bytes) -> dict[str, Any] | None:
    """Return a row with a step and usable losses; None for anything else."""
    try:
        row = parse_json(line.decode())
    except ValueError:  # not UTF-8, or Unreadable
        return None
    if not isinstance(row, dict) or type(step := row.get("step")) is not int or not 0 <= step < MOST_STEP:
        return None
    return row if all(_number(row.get(name, 0.0)) for name in ("loss", "validation_loss")) else None


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def _lines(count: int) -> str:
    return "one line" if count == 1 else f"{count:,} lines"
