"""What long steps say while they go on: notes and counts, told to whoever listens in this context.

Code that takes long calls `note`, `doing` or `counted`; it doesn't know who listens. The command line draws a live line
or writes a log. A Python program that sets no listener gets lines as well: what has lasted two seconds is told, then
every thirty. They go to the logger `foreword` (level INFO) if the program has set up logging, else to stderr;
`logging.getLogger("foreword").setLevel(logging.WARNING)` silences them.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")
EVERY = 64  # things between two counts
FIRST, AGAIN = 1.5, 30.0  # seconds until a line says what is going on, and until the next one does


class Listener(Protocol):
    """Gets notes, and how far long steps are."""

    def note(self, text: str) -> None:
        """One line that stays, such as what was recognised."""

    def doing(self, what: str, done: int = 0, total: int | None = None, detail: str = "") -> None:
        """What is going on now: `done` of `total` things (None: nobody knows how many), and more about it."""

    def urgent(self, text: str) -> None:
        """One line at once. Called within a signal handler, so it must neither wait nor lock."""


@dataclass
class Activity:
    """Something that goes on. since: the clock when it began, with `first` things done. told: when it was told last."""

    what: str
    since: float
    first: int = 0
    done: int = 0
    total: int | None = None
    detail: str = ""
    told: float | None = None

    def line(self, now: float) -> str:
        """Return it in one line, for instance `step 120/900  loss 1.734  ETA 6 min`."""
        count = "" if not (self.done or self.total) else f" {self.done:,}" + (f"/{self.total:,}" if self.total else "")
        left = self.seconds_left(now)
        parts = (self.what + count, self.detail, "" if left is None else f"ETA {duration(left)}")
        return "  ".join(part for part in parts if part)

    def seconds_left(self, now: float) -> float | None:
        """Return the seconds until it is done, at its speed so far; None if nobody knows."""
        made = self.done - self.first
        if not self.total or made < 1 or self.done >= self.total or now - self.since < 1:
            return None
        return (now - self.since) / made * (self.total - self.done)


def duration(seconds: float) -> str:
    """Return a time in words: `8 s`, `6 min`, `3 h 20 min`."""
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60} min"


class Lines:
    """A listener that writes lines: each note; what has lasted `first` seconds, and then every `AGAIN` seconds.

    write: writes one line. clock: gives seconds. A line is due when something is told, or when `tick` is called.
    """

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic, first: float = FIRST
    ) -> None:
        self._write, self._clock, self._first = write, clock, first
        self._lock = threading.RLock()
        self._known: dict[str, Activity] = {}
        self._began: float | None = None
        self._last: float | None = None
        self._heard = 0.0
        self.activity: Activity | None = None

    def note(self, text: str) -> None:
        self._write(text)

    def doing(self, what: str, done: int = 0, total: int | None = None, detail: str = "") -> None:
        self.update(what, done, total, detail)
        self.tick()

    def update(self, what: str, done: int, total: int | None, detail: str) -> None:
        """Remember what is going on. What was interrupted by something else goes on if its count does."""
        activity, now = self._known.get(what), self._clock()
        if activity is None or done < activity.done:
            activity = self._known[what] = Activity(what, now, done)
            if self._began is None or now - self._heard > AGAIN:  # nothing was going on meanwhile
                self._began, self._last = now, None
        self._heard = now
        activity.done, activity.total = done, total
        activity.detail = detail or activity.detail
        self.activity = activity

    def tick(self) -> None:
        """Write what is going on, if that is due."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            activity, now = self.activity, self._clock()
            if activity is not None and self._due(activity, now):
                self._tell(activity, now)
        finally:
            self._lock.release()

    def _tell(self, activity: Activity, now: float) -> None:
        activity.told = self._last = now
        self._write(activity.line(now))

    def _due(self, activity: Activity, now: float) -> bool:
        """What lasts is told once; many short things in turn are told as seldom as one long one."""
        if activity.told is None and now - activity.since >= self._first:
            return True
        if self._last is None:
            return self._began is not None and now - self._began >= self._first
        return now - self._last >= AGAIN

    def rest(self) -> None:
        """Nothing is going on."""
        self.activity = self._began = self._last = None
        self._known.clear()

    def urgent(self, text: str) -> None:
        write_now(text)


class Silent:
    """A listener that says nothing."""

    def note(self, text: str) -> None:
        pass

    def doing(self, what: str, done: int = 0, total: int | None = None, detail: str = "") -> None:
        pass

    def urgent(self, text: str) -> None:
        pass


def write_now(text: str) -> None:
    """Write one line to the process's stderr, past every buffer and lock."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())


def _log(text: str) -> None:
    logger = logging.getLogger("foreword")
    if logger.level != logging.NOTSET or logger.handlers or logging.getLogger().handlers:
        logger.info(text)
    else:
        print(f"foreword: {text}", file=sys.stderr)


_LISTENER: ContextVar[Listener | None] = ContextVar("foreword_status", default=None)
_NO_LISTENER = Lines(_log)


def _listener() -> Listener | None:
    """Return who listens here. Of several processes with one task only the first speaks."""
    listener = _LISTENER.get()
    if listener is None and os.environ.get("RANK", "0") == "0":
        return _NO_LISTENER
    return listener


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
    if (listener := _listener()) is not None:
        listener.note(text)


def doing(what: str, done: int = 0, total: int | None = None, detail: str = "") -> None:
    """Say what is going on, for instance doing("hashing weights", 3, 10)."""
    if (listener := _listener()) is not None:
        listener.doing(what, done, total, detail)


def urgent(text: str) -> None:
    """Say one line at once, from within a signal handler."""
    if (listener := _listener()) is not None:
        listener.urgent(text)


def counted(things: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield `things`, and say how many are done."""
    doing(what, 0, total)
    done = 0
    for done, thing in enumerate(things, start=1):
        yield thing
        if done % EVERY == 0:
            doing(what, done, total)
    doing(what, done, total)
