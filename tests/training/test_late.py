"""Reading losses a step late changes neither what is learned nor what is refused."""

from __future__ import annotations

import pytest
import torch

import foreword
from foreword.errors import NonFiniteError
from foreword.tasks import Predictions
from foreword.training import loop
from foreword.training.late import reads_late
from foreword.training.update import Update
from reads import Reads
from tiny import relative, tiny_base
from training_helpers import settings, write_rows


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path)


@pytest.fixture
def late(monkeypatch):
    monkeypatch.setattr(loop, "reads_late", lambda *_: True)


def test_it_is_for_one_process_on_a_gpu() -> None:
    assert reads_late(torch.device("cuda"), 1)
    assert not reads_late(torch.device("cuda"), 2)
    assert not reads_late(torch.device("cpu"), 1)


def test_the_run_is_the_same(rows, monkeypatch) -> None:
    plain = foreword.train(tiny_base(), settings(rows, "plain", steps=7, validate_every=3))
    monkeypatch.setattr(loop, "reads_late", lambda *_: True)
    found = foreword.train(tiny_base(), settings(rows, "late", steps=7, validate_every=3))
    assert [sorted(row) for row in found.history] == [sorted(row) for row in plain.history]
    for one, other in zip(found.history, plain.history, strict=True):
        assert one["step"] == other["step"]
        for name in ("loss", "validation_loss", "learning_rate"):
            assert one.get(name, 0.0) == pytest.approx(other.get(name, 0.0), rel=1e-5)
    for name, kv in found.prefix.slots.items():
        assert relative(kv.key.float(), plain.prefix.slots[name].key.float()) < 1e-3


def test_no_step_waits(rows, late, monkeypatch) -> None:
    real, counts = loop.Loop._step, []

    def watched(self, number, examples):
        with Reads() as reads:
            real(self, number, examples)
        counts.append(reads.count)

    monkeypatch.setattr(loop.Loop, "_step", watched)
    foreword.train(tiny_base(), settings(rows, "watched", steps=4, validate_every=4))
    assert counts == [0] * 4


def test_a_resumed_run_is_the_same_bit_for_bit(rows, late) -> None:
    whole = foreword.train(tiny_base(), settings(rows, "whole", steps=8, checkpoint_every=4, keep_checkpoints=5))
    run = whole.run / "checkpoints"
    middle = next(folder for folder in sorted(run.iterdir()) if "4" in folder.name)
    again = foreword.train(tiny_base(), settings(rows, "whole", steps=8, keep_checkpoints=5, resume=str(middle)))
    assert [row.get("loss") for row in again.history] == [row.get("loss") for row in whole.history]
    for name, kv in again.prefix.slots.items():
        assert torch.equal(kv.key, whole.prefix.slots[name].key)


@pytest.mark.parametrize("step", [3, 6])
def test_a_loss_that_is_not_finite_updates_nothing(rows, late, monkeypatch, step) -> None:
    real = Predictions.target_losses
    calls: list[int] = []
    seen: list[tuple[int, bool]] = []
    real_step = Update._step

    def poisoned(self):
        losses = real(self)
        if losses.requires_grad:
            calls.append(1)
        return losses * float("nan") if len(calls) == step and losses.requires_grad else losses

    def watched(self):
        before = [parameter.detach().clone() for parameter in self.parameters]
        real_step(self)
        same = all(torch.equal(one, other) for one, other in zip(before, self.parameters, strict=True))
        seen.append((len(seen) + 1, same))

    monkeypatch.setattr(Predictions, "target_losses", poisoned)
    monkeypatch.setattr(Update, "_step", watched)
    with pytest.raises(NonFiniteError, match=rf"step {step}: the loss is not finite; no update was made"):
        foreword.train(tiny_base(), settings(rows, "bad", steps=6, validate_every=6))
    assert seen == [(number, number == step) for number in range(1, step + 1)]
