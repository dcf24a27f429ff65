"""A run folder is read as it is: finished, resumed, killed, refused, damaged, hostile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import foreword
from foreword.errors import ConfigError, NonFiniteError
from foreword.runs import Run, find, read
from foreword.tasks import Predictions
from foreword.training.events import Stepped
from run_helpers import add_prefix, make_run
from tiny import tiny_base
from training_helpers import settings, write_rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("read"))


class Broke(Exception):
    pass


def test_a_real_run_is_what_its_result_says(rows) -> None:
    result = foreword.train(tiny_base(), settings(rows, "real"))
    run = read(result.run)
    losses = [row["validation_loss"] for row in result.history if "validation_loss" in row]
    assert (run.state, run.step, run.steps, run.problems) == ("finished", 12, 12, ())
    assert (run.first_loss, run.best_loss) == (losses[0], result.validation_loss)
    assert run.best_step == result.prefix.record["step"]
    assert run.last_loss == [row["loss"] for row in result.history if "loss" in row][-1]
    assert (run.base, run.data, run.task, run.method, run.length) == ("tiny-llama", "train.jsonl", "lm", "direct", 4)
    assert run.prefix_bytes == sum(file.stat().st_size for file in (result.run / "prefix").iterdir())
    assert read(result.run / "prefix" / "..").best_loss == run.best_loss


def test_a_run_goes_on_then_breaks_off_then_is_resumed(rows) -> None:
    seen: list[Run] = []

    def watch(event) -> None:
        if isinstance(event, Stepped) and event.step == 6:
            seen.append(read(rows / "broken"))
            raise Broke

    with pytest.raises(Broke):
        foreword.train(tiny_base(), settings(rows, "broken"), watch)
    assert [(run.state, run.step) for run in seen] == [("going on", 6)]
    broken = read(rows / "broken")
    assert (broken.state, broken.step, broken.best_step) == ("broken off", 6, 4)
    foreword.train(tiny_base(), settings(rows, "broken", resume=str(rows / "broken")))
    resumed = read(rows / "broken")
    assert (resumed.state, resumed.step, resumed.problems) == ("finished", 12, ())


def test_a_killed_run_leaves_a_lock_and_is_broken_off(rows) -> None:
    code = (
        "import os, signal, sys, foreword\n"
        "from pathlib import Path\n"
        "from tiny import tiny_base\n"
        "from training_helpers import settings\n"
        "def kill(event):\n"
        "    if getattr(event, 'learning_rate', None) is not None and event.step == 6:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "foreword.train(tiny_base(), settings(Path(sys.argv[1]), 'killed'), kill)\n"
    )
    tests = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(rows)],
        env=environment,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == -9, done.stderr
    assert (rows / "killed" / "run.lock").exists()
    assert (read(rows / "killed").state, read(rows / "killed").step) == ("broken off", 6)


def test_a_refused_step_is_a_failure(rows, monkeypatch) -> None:
    real, calls = Predictions.target_losses, []

    def poisoned(*arguments):
        losses = real(*arguments)
        calls.extend([1] if torch.is_grad_enabled() else [])
        return losses * float("nan") if len(calls) == 6 else losses

    monkeypatch.setattr(Predictions, "target_losses", poisoned)
    with pytest.raises(NonFiniteError):
        foreword.train(tiny_base(), settings(rows, "refused"))
    run = read(rows / "refused")
    assert (run.state, run.step, run.best_step) == ("failed", 5, 4)


def test_patience_that_ran_out_is_a_stop(rows) -> None:
    changes = {"lr": 100.0, "scheduler": "constant", "steps": 60, "validate_every": 2, "patience": 2}
    result = foreword.train(tiny_base(), settings(rows, "patient", **changes))
    assert result.stopped_early
    run = read(rows / "patient")
    assert (run.state, run.step) == ("stopped early", result.steps)
    assert run.best_loss == result.validation_loss


def test_a_run_without_a_prefix_or_checkpoint(tmp_path) -> None:
    run = make_run(tmp_path / "run", done=4, validations=[(0, 3.0)])
    assert (read(run).state, read(run).prefix_bytes) == ("broken off", None)
    (run / "history.jsonl").unlink()
    shutil.rmtree(run / "checkpoints")
    assert (read(run).state, read(run).step) == ("failed", None)


DAMAGE = {
    "no config": (None, "config.json can't be opened"),
    "cut off": ('{"method": "dir', "config.json is not valid JSON"),
    "a list": ("[]", "config.json holds no settings"),
    "another's": ('{"model_type": "llama"}', "config.json holds no settings"),
    "not text": (b"\xff\xfe", "config.json is not valid UTF-8"),
    "deep": ('{"method": ' + "[" * 5000, "config.json is"),
    "huge": (b" " * (3 * 2**20), "config.json has 3,145,728 bytes"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_settings_are_told(tmp_path, damage) -> None:
    text, told = DAMAGE[damage]
    run = make_run(tmp_path / "run")
    (run / "config.json").unlink()
    if text is not None:
        (run / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    (found,) = find(tmp_path)
    assert found.state == "damaged"
    assert found.problems[0].startswith(told)
    assert (found.step, found.best_loss, found.method) == (10, 2.0, "?")
    add_prefix(run, config={"method": "mlp", "length": 7, "steps": 10})
    (found,) = find(tmp_path)
    assert (found.state, found.method, found.length) == ("damaged", "mlp", 7), "the prefix's record knows"


def test_a_damaged_history_says_what_it_still_can(tmp_path) -> None:
    run = make_run(tmp_path / "run", validations=[(0, 3.0), (5, 1.5), (10, 2.0)])
    history = run / "history.jsonl"
    lines = history.read_bytes().splitlines(keepends=True)
    torn = [b'{"step": 5, "validation_loss": 1.\n' if b"1.5" in line else line for line in lines]
    history.write_bytes(b"".join(torn) + b'{"step": 11, "lo')
    found = read(run)
    assert found.problems == ("history.jsonl: one line can't be read",)
    assert (found.step, found.best_loss) == (10, 2.0)
    for content, told in ((b"x" * 2**17 + b"\n", "has a line of more than"), (b"\x00\xff\n" * 20, "none of its last")):
        history.write_bytes(content)
        assert told in read(run).problems[0]
    history.unlink()
    history.mkdir()
    assert "is not a regular file" in read(run).problems[0]


@pytest.mark.parametrize(
    "row",
    [
        '{"step": 1, "validation_loss": NaN}', '{"step": 1, "validation_loss": 1e999}', '{"validation_loss": 1}',
        '{"step": -1, "validation_loss": 1}', '{"step": 1, "validation_loss": "1"}', '["validation_loss"]',
        '{"step": true, "validation_loss": 1}', '{"step": 1, "validation_loss": ' + "9" * 400 + "}",
        '{"step": ' + "9" * 30 + ', "validation_loss": 1}', '{"step": 1, "validation_loss": null}',
    ],
)  # fmt: skip
def test_a_hostile_row_is_left_out(tmp_path, row) -> None:
    run = make_run(tmp_path / "run")
    with (run / "history.jsonl").open("a") as file:
        file.write(row + "\n")
    found = read(run)
    assert (found.best_loss, found.step) == (2.0, 10)
    assert found.problems == ("history.jsonl: one line can't be read",)


def test_hostile_settings_are_shown_as_nothing(tmp_path) -> None:
    wrong: dict[str, Any] = {
        "model": 5,
        "data": ["x"],
        "task": {},
        "length": "<b>",
        "steps": -3,
        "mixture": 7,
        "patience": "x",
    }
    run = read(make_run(tmp_path / "a\x1b[31m", **wrong))
    assert (run.base, run.data, run.length, run.steps) == ("?", "?", None, None)
    assert "\x1b" not in repr(run) + run._repr_html_()
    assert len(repr(run).splitlines()) <= 5
    json.dumps(run.facts())


def test_other_numbers_of_the_best_validation_are_metrics(tmp_path) -> None:
    run = make_run(tmp_path / "run", validations=[])
    with (run / "history.jsonl").open("a") as file:
        for step, loss, accuracy in ((0, 3.0, 0.1), (5, 1.0, 0.9), (10, 2.0, 0.7)):
            row = {"step": step, "validation_loss": loss, "accuracy": accuracy, "note": "x"}
            file.write(json.dumps(row) + "\n")
    assert read(run).metrics == {"accuracy": 0.9}


def test_what_is_no_run_is_refused(tmp_path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    for path in (tmp_path, tmp_path / "model", tmp_path / "nowhere", tmp_path / "model" / "config.json", "\0"):
        with pytest.raises(ConfigError, match="run: "):
            read(path)
