"""What a command says on stderr while it works: one live line on a terminal, plain lines in a log.

On a terminal a thread draws what is going on eight times a second, and a small plot of the losses while a run trains.
Elsewhere it writes a line without escape codes for what has lasted two seconds, then every thirty.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.text import Text

from foreword import status
from foreword.cli.plot import Curves

if TYPE_CHECKING:
    from foreword.training.events import Event

PERIOD = 0.125  # seconds between two looks
UNSEEN = 0.3  # seconds within which a live line would only flicker
BAR = 20  # characters
NAMED = 5  # rows that are left out and named one by one


class Live(status.Lines):
    """Listens to what long steps say, and shows it. An observer of `foreword.train` for its plot, too.

    console: where it is shown, by a live line if that is a terminal. echo: writes one line in a log. first: seconds
    until a log has its first line.
    """

    def __init__(
        self,
        console: Console,
        echo: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        first: float = status.FIRST,
    ) -> None:
        super().__init__(self.say, clock, first)
        self._console, self._echo = console, echo
        self.terminal = console.file.isatty() and not console.is_dumb_terminal
        self._curves = Curves()
        self._asked = ""
        self._drawn: Any = None

    def note(self, text: str) -> None:
        self.say(f"note: {text}")

    def say(self, text: str) -> None:
        """Write one line; on a terminal it goes above the live one."""
        with self._lock:
            if self._drawn is None:
                self._echo(text)
            else:
                self._drawn.console.print(text, soft_wrap=True)

    def doing(self, what: str, done: int = 0, total: int | None = None, detail: str = "") -> None:
        self.update(what, done, total, detail)
        if not self.terminal:
            self.tick()

    def tell(self) -> None:
        """Show what is going on at once. To be called before something that lets no thread run, such as an import."""
        if self.terminal:
            self._draw(0.0)
        elif (activity := self.activity) is not None and activity.told is None:
            self._tell(activity, self._clock())

    def tick(self) -> None:
        if self.terminal:
            self._draw(UNSEEN)
        else:
            super().tick()

    def _draw(self, unseen: float) -> None:
        with self._lock:
            activity = self.activity
            if activity is None or (self._drawn is None and self._clock() - activity.since < unseen):
                return
            if self._drawn is None:
                from rich.live import Live as Drawn

                self._drawn = Drawn(console=self._console, transient=True, auto_refresh=False, redirect_stdout=False)
                self._drawn.start()
            self._drawn.update(Group(*self.lines(activity)), refresh=True)

    def lines(self, activity: status.Activity) -> list[Text]:
        """Return what a terminal shows of `activity`: the live line, then the plot, then the answer to a signal."""
        bar, now = "", self._clock()
        if activity.total:
            filled = min(BAR, BAR * activity.done // activity.total)
            bar = "━" * filled + "╌" * (BAR - filled) + "  "
        text = bar + activity.line(now)
        if not activity.total and now - activity.since >= 2:  # that the seconds pass shows that it goes on
            text += f"  {status.duration(now - activity.since)}"
        plot = self._curves.plot(self._console.width - 1)
        shown = [Text(text, no_wrap=True, overflow="ellipsis"), *plot]
        return [*shown, Text(self._asked, style="bold")] if self._asked else shown

    def settle(self) -> None:
        """Nothing is going on: the live line goes, so that something else can be written there."""
        with self._lock:
            self.rest()
            self._curves.clear()
            self._asked = ""
            drawn, self._drawn = self._drawn, None
            if drawn is not None:
                drawn.stop()

    def urgent(self, text: str) -> None:
        if self.terminal and self.activity is not None:
            self._asked = text  # the thread draws it, within `PERIOD`
        else:
            super().urgent(text)

    def __call__(self, event: Event) -> None:
        """Follow a run's events, for the plot and for what they hold to be read."""
        from foreword.training import events

        if isinstance(event, events.Stepped):
            self._curves.add(event.step, event.loss)
        elif isinstance(event, events.Validated):
            self._curves.validation.append((event.step, event.validation_loss))
        elif isinstance(event, events.Sampled):
            self.say(f"{event.where}: {event.answer!r} (target {event.target!r})")
        elif isinstance(event, events.Started):
            for line in left_out(event.bad_rows):
                self.note(line)


def left_out(bad_rows: Sequence[object]) -> list[str]:
    """Return lines about rows that are left out: a few by name, and how many more there are."""
    lines = [f"left out {bad}" for bad in bad_rows[:NAMED]]
    return [*lines, f"and {more:,} more rows left out"] if (more := len(bad_rows) - NAMED) > 0 else lines


_SHOWN: list[Live] = []  # the innermost command's is the last


@contextmanager
def showing(live: Live) -> Iterator[Live]:
    """Within the block `live` listens, and a thread lets it write what is due."""
    ended = threading.Event()

    def watch() -> None:
        with suppress(OSError, ValueError):  # nobody reads stderr any more
            while not ended.wait(PERIOD):
                live.tick()

    thread = threading.Thread(target=watch, name="foreword-live", daemon=True)
    _SHOWN.append(live)
    thread.start()
    try:
        with status.listening(live):
            yield live
    finally:
        ended.set()
        thread.join()
        live.settle()
        _SHOWN.remove(live)


def shown() -> Live | None:
    """Return the `Live` of the command that is running, if there is one."""
    return _SHOWN[-1] if _SHOWN else None


def settle() -> None:
    """Clear the live line, if there is one."""
    if (live := shown()) is not None:
        live.settle()
