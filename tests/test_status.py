"""Notes and counts reach the listener of their context, and nobody else."""

from __future__ import annotations

import logging
import threading

import pytest

from foreword import status


class Heard:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.counts: list[tuple[str, int, int | None]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def doing(self, what: str, done: int = 0, total: int | None = None) -> None:
        self.counts.append((what, done, total))


def test_a_listener_gets_notes_and_counts() -> None:
    heard = Heard()
    with status.listening(heard):
        status.note("messages, 2 turns")
        assert list(status.counted(range(130), "reading rows", 130)) == list(range(130))
    status.doing("later")
    assert heard.notes == ["messages, 2 turns"]
    assert heard.counts == [("reading rows", done, 130) for done in (0, 64, 128, 130)]


def test_the_inner_listener_replaces_the_outer_one() -> None:
    outer, inner = Heard(), Heard()
    with status.listening(outer):
        with status.listening(inner):
            status.note("inner")
        status.note("outer")
    assert (outer.notes, inner.notes) == (["outer"], ["inner"])


def test_another_thread_is_not_heard() -> None:
    heard = Heard()
    with status.listening(heard):
        other = threading.Thread(target=status.note, args=("elsewhere",))
        other.start()
        other.join()
    assert heard.notes == []


def test_without_a_listener_notes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="foreword"):
        status.note("tokenising 3 rows")
        status.doing("tokenising", 1, 3)
    assert caplog.messages == ["tokenising 3 rows"]
