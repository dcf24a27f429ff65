"""Loss curves as SVG, made here: no script, and nothing from outside. Each curve has a colour, a dash and a mark."""

from __future__ import annotations

import math
from collections.abc import Sequence

from foreword.runs.history import Point

WIDTH, HEIGHT = 520, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 34  # of the frame, for the numbers at the axes
COLOURS = 6  # of the style sheet; after them they come again with other dashes
_DASHES = ("", "7 4", "2 3")
_MOST_MARKS = 60  # points of a curve that get a mark and a text of their own
Frame = tuple[float, float, float, float]  # first and last step, smallest and largest loss


def letter(number: int) -> str:
    """Return the letter of a curve: A, B, …"""
    return chr(ord("A") + number)


def chart(title: str, series: Sequence[Sequence[Point]], marked: bool) -> str:
    """Return an SVG of curves by step; empty if none has a point. title: plain words. marked: each point gets a dot."""
    if not any(series):
        return ""
    frame = _frame(series)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}"><title>{title}</title>',
        *_axes(frame),
    ]
    for number, points in enumerate(series):
        if points:
            parts.append(_curve(number, points, frame, marked))
    return "".join([*parts, "</svg>"])


def key(number: int) -> str:
    """Return a small SVG that shows how a curve is drawn."""
    return (
        f'<svg class="key c{number % COLOURS}" viewBox="0 0 34 12" aria-hidden="true">'
        f'<path d="M0 6H34"{_dash(number)}/><circle cx="17" cy="6" r="3"/></svg>'
    )


def _frame(series: Sequence[Sequence[Point]]) -> Frame:
    steps = [step for points in series for step, _ in points]
    losses = [loss for points in series for _, loss in points]
    low, high = min(losses), max(losses)
    room = (high - low) * 0.04 or max(abs(low) * 0.04, 0.04)
    return min(steps), max(max(steps), min(steps) + 1), low - room, high + room


def _axes(frame: Frame) -> list[str]:
    """Return lines and numbers of the axes."""
    first, last, low, high = frame
    parts = []
    for loss in ticks(low, high):
        y = _y(loss, frame)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{loss:.6g}</text>')
    for step in ticks(first, last, whole=True):
        x = _x(step, frame)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{step:,.0f}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">step</text>')
    return parts


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Return two to eight round numbers from `low` to `high`. whole: whole ones alone."""
    rough = (high - low) / 7
    size = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    size *= next(factor for factor in (1, 2, 5, 10) if factor * size >= rough * 0.999)
    size = max(1.0, size) if whole else size
    number = math.ceil(low / size)
    return [count * size for count in range(number, number + 12) if low <= count * size <= high]


def _curve(number: int, points: Sequence[Point], frame: Frame, marked: bool) -> str:
    places = [(_x(step, frame), _y(loss, frame)) for step, loss in points]
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    dots = []
    if marked or len(points) == 1:
        chosen = range(0, len(points), 1 + len(points) // _MOST_MARKS)
        for at in sorted({*chosen, len(points) - 1}):
            (x, y), (step, loss) = places[at], points[at]
            told = f"{letter(number)}, step {step:,.0f}: {loss:.4f}"
            dots.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{told}</title></circle>')
    x, y = places[-1]
    name = f'<text class="name" x="{min(x + 5, WIDTH - 10):.1f}" y="{y - 5:.1f}">{letter(number)}</text>'
    return f'<g class="c{number % COLOURS}"><path d="M{line}"{_dash(number)}/>{"".join(dots)}{name}</g>'


def _dash(number: int) -> str:
    dash = _DASHES[(number // COLOURS + number) % len(_DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _x(step: float, frame: Frame) -> float:
    return LEFT + (step - frame[0]) / (frame[1] - frame[0]) * (WIDTH - LEFT - RIGHT)


def _y(loss: float, frame: Frame) -> float:
    return TOP + (frame[3] - loss) / (frame[3] - frame[2]) * (HEIGHT - TOP - BOTTOM)
