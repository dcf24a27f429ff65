"""Notes and counts reach the listener of their context, and nobody else."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

import pytest

from foreword import status
from status_helpers import Clock, Heard


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


def test_lines_come_after_two_seconds_and_then_every_thirty() -> None:
    written: list[str] = []
    clock = Clock()
    lines = status.Lines(written.append, clock)
    for second in range(70):
        clock.now = 100.0 + second
        lines.doing("step", second, 900, f"loss {2 - second / 100:.3f}")
    assert written == [
        "step 2/900  loss 1.980  ETA 15 min",
        "step 32/900  loss 1.680  ETA 14 min",
        "step 62/900  loss 1.380  ETA 14 min",
    ]


def test_many_short_things_are_told_too_but_not_each() -> None:
    """No single one lasts two seconds; together they are a long silence."""
    written: list[str] = []
    clock = Clock()
    lines = status.Lines(written.append, clock)
    for tenth in range(650):
        clock.now = 100.0 + tenth / 10
        lines.doing(f"thing {tenth % 7}", tenth % 3)
    assert len(written) == 3


def test_a_thing_that_goes_on_after_an_interruption_keeps_its_speed() -> None:
    clock = Clock()
    lines = status.Lines(lambda text: None, clock)
    lines.doing("step", 0, 100)
    clock.now += 10
    lines.doing("step", 10, 100)
    lines.doing("validating", 0, 5)
    clock.now += 10
    lines.doing("step", 10, 100)
    assert lines.activity is not None
    assert lines.activity.seconds_left(clock.now) == pytest.approx(180)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (8.4, "8 s"), (99.6, "2 min"), (1500, "25 min"), (12_000, "3 h 20 min")]
)
def test_durations_in_words(seconds, words) -> None:
    assert status.duration(seconds) == words


SCRIPT = """
import logging, sys, time
from foreword import status
SETUP
status._NO_LISTENER._clock = iter(range(1000)).__next__
for number in range(40):
    status.doing("tokenising", number, 40)
"""


@pytest.mark.parametrize(
    ("setup", "expected"),
    [
        ("", "foreword: tokenising 1/40"),
        ("logging.basicConfig(level=logging.INFO)", "INFO:foreword:tokenising 1/40"),
        ("logging.basicConfig()", ""),
        ("logging.getLogger('foreword').setLevel(logging.WARNING)", ""),
    ],
)
def test_a_program_without_a_listener_is_not_left_silent_unless_its_logging_says_so(setup, expected) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("SETUP", setup)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == ""
    assert done.stderr.startswith(expected)
    assert bool(done.stderr) == bool(expected)


def test_of_several_processes_only_the_first_speaks(monkeypatch, caplog) -> None:
    monkeypatch.setenv("RANK", "1")
    with caplog.at_level(logging.INFO, logger="foreword"):
        status.note("tokenising")
    assert caplog.messages == []


def test_what_is_urgent_is_written_at_once(capfd) -> None:
    status.urgent("finishing this step")
    assert capfd.readouterr().err == "finishing this step\n"


def test_a_silent_listener_hears_nothing(caplog) -> None:
    with caplog.at_level(logging.INFO, logger="foreword"), status.listening(status.Silent()):
        status.note("tokenising")
        status.doing("tokenising", 1, 3)
        status.urgent("stopping")
    assert caplog.messages == []
