"""What long steps say while they go on: notes and counts, told to whoever listens in this context.

Code that takes long calls `note`, `doing` or `counted`; it doesn't know who listens. The command line draws a live line
or writes a log. Without a listener, notes go to the logger `foreword` (level INFO) and counts go nowhere.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

T = TypeVar("T")
EVERY = 64  # things between two counts


class Listener(Protocol):
    """Gets notes, and how far long steps are."""

    def note(self, text: str) -> None:
        """One line that stays, such as what was recognised."""

    def doing(self, what: str, done: int = 0, total: int | None = None) -> None:
        """What is going on now: `done` of `total` things; None: nobody knows how many."""


_LISTENER: ContextVar[Listener | None] = ContextVar("foreword_status", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within the block, `listener` gets what this thread or task says."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def note(text: str) -> None:
    """Say one line that stays."""
    if (listener := _LISTENER.get()) is None:
        logging.getLogger("foreword").info(text)
    else:
        listener.note(text)


def doing(what: str, done: int = 0, total: int | None = None) -> None:
    """Say what is going on, for instance doing("hashing weights", 3, 10)."""
    if (listener := _LISTENER.get()) is not None:
        listener.doing(what, done, total)


def counted(things: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield `things`, and say how many are done."""
    doing(what, 0, total)
    done = 0
    for done, thing in enumerate(things, start=1):
        yield thing
        if done % EVERY == 0:
            doing(what, done, total)
    doing(what, done, total)
