"""The meter of a rendering: what it may spend, and what values cost.

A step costs `STEP`; text that is made costs its length, text that is read half of it; an entry of a list costs `STEP`.
So time and memory are bounded by the meter's fuel, whatever a template does.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from contextvars import ContextVar
from typing import Any

from jinja2 import Undefined

STEP = 32
PIECE = 64  # of a text that is split
DEEPEST = 32  # levels of a value
_VIEWS = (list, tuple, KeysView, ValuesView, ItemsView)


class OutOfBounds(Exception):
    """A template wants more than it may have, or something that it may not do."""


class Meter:
    """What a rendering may still spend."""

    def __init__(self, fuel: int) -> None:
        self.fuel = fuel

    def pay(self, cost: int) -> None:
        """Raise `OutOfBounds` if there is less fuel than `cost`."""
        self.fuel -= cost
        if self.fuel < 0:
            raise OutOfBounds("takes too much time or memory")


METER: ContextVar[Meter] = ContextVar("foreword_meter")


def pay(cost: int) -> None:
    METER.get().pay(cost)


def walk(value: Any, halves: int = 1, depth: int = 0) -> None:
    """Pay for every value in `value`, as often as it stands there. halves: half units per character.

    Raises `OutOfBounds`, also for values nested too deep.
    """
    if isinstance(value, str):
        pay(STEP + (len(value) * halves >> 1))
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            walk(key, halves, depth + 1)
            walk(entry, halves, depth + 1)
    elif isinstance(value, _VIEWS):
        for entry in value:
            walk(entry, halves, depth + 1)
    elif isinstance(value, range):
        pay(STEP * len(value))
    pay(STEP)
    if depth > DEEPEST:
        raise OutOfBounds("nests values too deep")


def text(value: Any) -> str:
    """Return `str(value)`. Raises `OutOfBounds` for values other than plain ones."""
    if type(value) is str:
        return value
    if not isinstance(value, str):
        if not isinstance(
            value,
            int | float | Undefined | Mapping | range | type(None) | tuple | list | KeysView | ValuesView | ItemsView,
        ):
            raise OutOfBounds(f"writes a {type(value).__name__}, which is no text")
        walk(value, 20)  # "\U0010ffff" for one character
    return str(value)


def written(value: Any) -> str:
    """Return the text that a template puts out for `value`."""
    made = text(value)
    pay(len(made))
    return made


def joined(values: Iterable[Any], between: str = "") -> str:
    """Return the values' texts, one after another."""
    texts = [text(value) for value in values]
    pay(sum(map(len, texts)) + len(between) * len(texts))
    return between.join(texts)


def steps(values: Any, cost: int = STEP) -> Iterator[Any]:
    """Yield the entries of an iterable; each costs `cost`."""
    meter = METER.get()
    for value in values:
        meter.pay(cost)
        yield value


def listed(values: Any) -> list[Any]:
    return list(steps(values))


def key(value: Any) -> Any:
    """Return `value` if it may be a key: hashing nested tuples takes time without end."""
    if not isinstance(value, str | int | float | Undefined | type(None)):
        raise OutOfBounds(f"uses a {type(value).__name__} as a key")
    return value
