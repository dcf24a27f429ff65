"""Listeners and clocks for what is said meanwhile."""

from __future__ import annotations


class Heard:
    """A listener that keeps what it hears. notes: also what is urgent."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.counts: list[tuple[str, int, int | None]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def doing(self, what: str, done: int = 0, total: int | None = None, detail: str = "") -> None:
        self.counts.append((what, done, total))

    def urgent(self, text: str) -> None:
        self.notes.append(text)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now
