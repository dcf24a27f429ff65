"""What a command says while it works: a live line on a terminal, plain lines in a log, and nothing on stdout."""

from __future__ import annotations

import importlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from foreword.cli.live import Live
from foreword.cli.main import execute
from foreword.cli.plot import HEIGHT, MOST, Curves
from foreword.folders import clear_inside
from foreword.training.events import Stepped, Validated
from signal_helpers import hearing
from status_helpers import Clock

WITHIN = 2.0  # seconds, which the issue sets


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(clock: Clock) -> tuple[Live, Terminal]:
    screen = Terminal()
    console = Console(file=screen, force_terminal=True, width=100, _environ={"TERM": "xterm"})
    return Live(console, lambda text: print(text, file=screen), clock), screen


def test_a_terminal_gets_one_live_line_with_a_count_and_an_eta() -> None:
    clock = Clock()
    live, screen = on_terminal(clock)
    live.doing("tokenising rows", 0, 42_061)
    live.tick()
    assert screen.getvalue() == ""  # what is over at once doesn't flicker
    clock.now += 10
    live.doing("tokenising rows", 21_000, 42_061)
    live.tick()
    shown = screen.getvalue()
    assert "tokenising rows 21,000/42,061" in shown
    assert "ETA 10 s" in shown
    assert "\n" not in shown.rstrip("\n")
    live.say("note: above it")
    assert "note: above it" in screen.getvalue()
    live.settle()
    assert screen.getvalue().endswith("\x1b[2K") or "\x1b[2K" in screen.getvalue()[len(shown) :]
    before = screen.getvalue()
    clock.now += 60
    live.tick()
    assert screen.getvalue() == before  # settled: nothing is drawn until something goes on again


def test_what_has_no_count_shows_that_time_passes() -> None:
    clock = Clock()
    live, _ = on_terminal(clock)
    live.doing("loading smollm2-135m")
    assert live.activity is not None
    clock.now += 7
    assert [line.plain for line in live.lines(live.activity)] == ["loading smollm2-135m  7 s"]


def test_a_terminal_sees_the_losses_of_a_run() -> None:
    clock = Clock()
    live, _ = on_terminal(clock)
    for step in range(1, 40):
        live(Stepped(step, 3.0 - step / 20, 0.01, 100.0))
        if step % 10 == 0:
            live(Validated(step, 3.1 - step / 20, True))
    live.doing("step", 39, 100, "loss 1.050")
    assert live.activity is not None
    first, *plot = [line.plain for line in live.lines(live.activity)]
    assert "step 39/100  loss 1.050" in first
    assert len(plot) == HEIGHT
    assert plot[0].lstrip().startswith("2.950")
    assert plot[-1].lstrip().startswith("1.050")
    assert any(0x2800 < ord(character) < 0x2900 for character in "".join(plot))
    assert max(map(len, plot)) <= 100


def test_a_falling_loss_is_drawn_from_the_upper_left_to_the_lower_right() -> None:
    curves = Curves()
    for step in range(100):
        curves.add(step, 10.0 - step / 10)
    plot = [line.plain[9:] for line in curves.plot(80)]
    assert plot[0][0] != "\u2800"
    assert plot[-1][-1] != "\u2800"
    assert plot[0][-1] == plot[-1][0] == "\u2800"


def test_a_plot_of_a_long_run_keeps_means() -> None:
    curves = Curves()
    for step in range(10 * MOST):
        curves.add(step, 1.0)
    curves.add(10 * MOST, float("nan"))
    assert len(curves.loss) < MOST
    assert len(curves.plot(80)) == HEIGHT
    assert Curves().plot(80) == []


def test_ctrl_c_on_a_terminal_is_answered_in_the_live_display() -> None:
    live, screen = on_terminal(Clock())
    live.doing("step", 1, 9)
    live.tell()
    live.urgent("finishing this step and saving; Ctrl-C again to stop now")
    live.tick()
    assert "finishing this step and saving" in screen.getvalue()


def test_a_log_gets_plain_lines(capsys) -> None:
    clock = Clock()
    console = Console(file=io.StringIO(), width=20)
    lines: list[str] = []
    live = Live(console, lines.append, clock)
    live.doing("hashing model.safetensors, in MB", 3, 538)
    clock.now += 2
    live.tick()
    live.note("messages, 2 turns")
    assert lines == ["hashing model.safetensors, in MB 3/538", "note: messages, 2 turns"]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1"} | more


def first_word(arguments: list[str], folder: Path) -> tuple[float, str]:
    """Seconds until the command says something, and what it says first."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "foreword", *arguments],
        cwd=folder, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = os.read(process.stdout.fileno(), 4096)
        return time.monotonic() - began, said.decode()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "run.yaml"],
        ["generate", "q1", "--model", "model"],
        ["eval", "--data", "train.jsonl", "--model", "model"],
        ["compress", "nowhere"],
        ["demo", "--steps", "1", "--model", "model"],
        ["slots", "model"],
        ["show", "nowhere"],
        ["methods", "model"],
        ["export", "nowhere", "--output", "x"],
        ["doctor"],
        ["--help"],
    ],
)
def test_the_first_word_of_any_command_comes_within_two_seconds(place, arguments) -> None:
    seconds, said = first_word(arguments, place)
    print(f"\n{arguments[0]}: {seconds:.2f} s: {said.splitlines()[0]}")
    assert seconds < WITHIN
    assert said.strip()


def test_a_pipe_gets_no_escape_codes_and_stdout_nothing_but_the_answer(place) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "foreword", "train", "run.yaml", "--json"],
        cwd=place, capture_output=True, text=True, check=True, timeout=120, env=environment(FORCE_COLOR="1"),
    )  # fmt: skip
    assert json.loads(done.stdout)["steps"] == 2
    assert "loading model" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    assert "\r" not in done.stderr


def test_on_a_terminal_the_live_line_is_gone_at_the_end(place) -> None:
    """A real pseudo-terminal: stderr is drawn on, stdout stays a pipe."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "foreword", "train", "run.yaml", "--steps", "30", "--json"],
        cwd=place, stdout=subprocess.PIPE, stderr=follower, env=environment(TERM="xterm", COLUMNS="100"),
    )  # fmt: skip
    os.close(follower)
    screen = b""
    try:
        while chunk := os.read(leader, 65536):
            screen += chunk
    except OSError:  # the other end is closed
        pass
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    assert json.loads(output)["steps"] == 30
    text = screen.decode()
    assert "loading model" in text
    assert "\x1b[?25l" in text  # the cursor was hidden,
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # and is there again


def stopped(
    place: Path, arguments: list[str], after: str, number: int, until: Callable[[], bool] = lambda: True, **more: str
) -> tuple[int, str, float]:
    """(exit code, stderr, seconds from the signal to the end) of a command that gets a signal once it has said `after`
    and `until` is true."""
    process: Any = subprocess.Popen(
        [sys.executable, "-m", "foreword", *arguments],
        cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**more),
        preexec_fn=hearing,
    )  # fmt: skip
    try:
        said = ""
        while after not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        time.sleep(0.2)
        while not until():
            assert process.poll() is None
            time.sleep(0.05)
        asked = time.monotonic()
        process.send_signal(number)
        _, rest = process.communicate(timeout=240)
        return process.returncode, said + rest, time.monotonic() - asked
    finally:
        process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_before_training_a_signal_ends_the_command_with_one_line(place, number, code) -> None:
    returned, said, _ = stopped(place, ["train", "run.yaml"], "loading model", number)
    assert returned == code, said
    assert said.splitlines()[-1] == f"stopped by {signal.Signals(number).name}"
    assert "error" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize("seconds", [0.1, 0.7, 1.1, 1.5])
def test_no_library_aborts_when_a_signal_comes_while_it_is_imported(place, seconds) -> None:
    begins = time.monotonic()
    returned, said, _ = stopped(
        place, ["train", "run.yaml"], "loading model", signal.SIGINT, lambda: time.monotonic() - begins > seconds
    )
    assert returned == 130, said
    assert said.splitlines()[-1] == "stopped by SIGINT"


def test_an_import_is_known_by_its_frames(monkeypatch) -> None:
    """Within one the process ends; elsewhere the command is unwound."""
    from foreword.cli import stopping

    ended: list[int] = []

    def leave(number: int) -> None:
        ended.append(number)
        raise SystemExit

    monkeypatch.setattr(stopping, "_leave", leave)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stopping.terminable():  # what is ignored stays so
        os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with stopping.terminable():
        with pytest.raises(stopping.Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert ended == []
        with pytest.raises(SystemExit):
            importlib.import_module("module_that_stops")
    signal.signal(signal.SIGINT, before)
    assert ended == [signal.SIGTERM]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_while_rows_are_tokenised_a_signal_leaves_nothing_behind(place, number, code) -> None:
    """They are counted meanwhile, and what was stored of them is gone, or goes with the next run's.

    A signal during an import ends the process at once, so that a folder may stay that nobody holds.
    """
    row = json.dumps({"input": "question " * 8, "target": "answer " * 4}) + "\n"
    (place / "train.jsonl").write_text(row * 150_000)
    cache = place / "cache"

    def stored() -> bool:
        return any((cache / "rows").glob(".*/target_ids.i"))

    returned, said, _ = stopped(place, ["train", "run.yaml"], "tokenising", number, stored, FOREWORD_CACHE=str(cache))
    assert returned == code, said
    assert re.search(r"^tokenising train\.jsonl [\d,]+/150,000", said, re.MULTILINE), said
    assert said.splitlines()[-1] == f"stopped by {signal.Signals(number).name}"
    clear_inside(cache / "rows")
    assert list((cache / "rows").iterdir()) == []
    assert not (place / "runs").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_while_training_a_signal_is_answered_at_once_and_the_run_is_saved(place, number, code) -> None:
    arguments = ["train", "run.yaml", "--steps", "100000", "--output", "run"]
    returned, said, _ = stopped(place, arguments, "100,000 steps", number)
    assert returned == code, said
    *lines, last = said.splitlines()
    again = "; Ctrl-C again to stop now" if number == signal.SIGINT else ""
    assert f"finishing this step and saving{again}" in lines[-3:]  # the step that is finished may say something, too
    assert last.startswith(f"stopped by {signal.Signals(number).name} after step ")
    assert "go on with --resume run" in last
    assert "error" not in said


def test_a_run_says_what_it_will_take_before_its_first_step(place, capsys) -> None:
    assert execute(["train", "run.yaml", "--output", "run"]) == 0
    said = capsys.readouterr().err
    assert "note: 2 steps, 1.78 times over 18 rows, about 1 s" in said
    assert "note: a short run: 2 steps, after which the loss is likely to be still falling" in said
