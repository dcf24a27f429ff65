"""SIGINT and SIGTERM at every moment: the run is saved, the exit code says why, and it goes on bit-identically."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch

import foreword
from foreword.errors import InterruptedRunError
from foreword.tasks import Predictions
from foreword.training import keeping, loop, validation
from tiny import tiny_base, tiny_model
from training_helpers import debris, equal, final_state, history_of, settings, tensors, untimed, write_rows

CHANGES: dict[str, Any] = {"accumulation": 3, "method": "mlp", "steps": 8}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("call", "step"),
    [
        ("summed_loss", 1),  # the validation before the first step
        ("target_losses", 1),  # in the first part of the first batch
        ("target_losses", 8),  # in the middle of an accumulation
        ("summed_loss", 2),  # in a validation after an update
        ("save_checkpoint", 2),  # while a checkpoint is written
    ],
)
def test_stopped_and_gone_on(tmp_path, monkeypatch, call, step, number) -> None:
    base, rows = tiny_base(), write_rows(tmp_path)
    whole = foreword.train(base, settings(rows, "whole", **CHANGES))
    homes = {"target_losses": Predictions, "save_checkpoint": keeping, "summed_loss": validation}
    home = homes[call]
    seen, real = [], getattr(home, call)

    def then_signal(*arguments, **more):
        if home is not Predictions or torch.is_grad_enabled():
            seen.append(call)
        if len(seen) == step:
            os.kill(os.getpid(), number)
        return real(*arguments, **more)

    monkeypatch.setattr(home, call, then_signal)
    with pytest.raises(InterruptedRunError, match=rf"{number.name} after step \d+ of 8.*--resume") as raised:
        foreword.train(base, settings(rows, **CHANGES))
    monkeypatch.setattr(home, call, real)
    assert raised.value.exit_code == 128 + number
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # the caller's handlers are back
    assert debris(rows / "run") == []
    resumed = foreword.train(base, settings(rows, resume=str(rows / "run"), **CHANGES))
    assert equal(final_state(resumed.run), final_state(whole.run))
    assert equal(tensors(resumed.prefix), tensors(whole.prefix))
    assert history_of(resumed.run) == untimed(whole.history)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_line_exits_with_130_and_143(tmp_path, number, code) -> None:
    from tiny import byte_tokenizer

    rows = write_rows(tmp_path)
    tiny_model("llama").save_pretrained(rows / "model")
    byte_tokenizer().save_pretrained(rows / "model")
    arguments = [
        "train",
        "--model",
        "model",
        "--data",
        "train.jsonl",
        "--validation",
        "valid.jsonl",
        "--template",
        "{input}=",
        "--steps",
        "100000",
        "--output",
        "run",
        "--length",
        "4",
        "--set",
        "trackers=[]",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "foreword", *arguments], cwd=rows, stderr=subprocess.PIPE, text=True
    )
    try:
        history = rows / "run" / "history.jsonl"
        deadline = time.monotonic() + 120
        while not (history.is_file() and len(history.read_text().splitlines()) > 5):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        asked = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
        seconds = time.monotonic() - asked
        assert seconds < 30
        print(f"\n{number.name}: exit {process.returncode} after {seconds:.2f} s")
    finally:
        process.kill()
    assert process.returncode == code, said
    assert "go on with --resume run" in said
    assert "Traceback" not in said
    step = int(sorted((rows / "run" / "checkpoints").iterdir())[-1].name[5:])
    assert step == max(row["step"] for row in history_of(rows / "run"))


def test_signals_that_come_twice(tmp_path) -> None:
    """A wrapper's second SIGTERM changes nothing; a second Ctrl-C, a while after the first, stops at once."""
    from foreword.training import signals as module

    with module.Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGTERM
        signals._since -= 2 * module.PATIENCE
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_tracker_that_fails_leaves_the_handlers_alone(tmp_path, monkeypatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(loop, "start_trackers", lambda *_: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(OSError, match="no network"):
        foreword.train(tiny_base(), settings(write_rows(tmp_path), steps=1))
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_a_run_still_runs(tmp_path) -> None:
    import threading

    rows, results = write_rows(tmp_path), []
    thread = threading.Thread(target=lambda: results.append(foreword.train(tiny_base(), settings(rows, steps=1))))
    thread.start()
    thread.join()
    assert results[0].steps == 1
