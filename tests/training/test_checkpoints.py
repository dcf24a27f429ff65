"""Going on from a checkpoint: bit-identical, and only with what the run began with."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

import pytest
import torch

import foreword
from foreword.errors import CheckpointError
from foreword.methods import METHODS
from foreword.tasks import lm
from foreword.training.checkpoint import list_checkpoints, prune, read_state, step_of
from tiny import tiny_base
from training_helpers import copy_until, equal, final_state, settings, tensors, untimed, write_rows


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant"])
def test_resume_is_bit_identical_from_every_checkpoint(rows, method, scheduler, monkeypatch) -> None:
    """Start, middle and end of an epoch (four steps): weights, optimizer, random state, history, rows."""
    base, visited = tiny_base(), []
    real = lm.collate

    def watched(examples, *more):
        if torch.is_grad_enabled():  # not in a validation
            visited.append([e.where for e in examples])
        return real(examples, *more)

    monkeypatch.setattr(lm, "collate", watched)
    changes: dict[str, Any] = {
        "method": method, "scheduler": scheduler, "accumulation": 2, "weight_decay": 0.01, "steps": 9,
        "checkpoint_every": 1, "validate_every": 2,
    }  # fmt: skip
    whole = foreword.train(base, settings(rows, "whole", **changes))
    order, final = list(visited), final_state(whole.run)
    assert {"producer", "optimizer", "random"} == {name.partition(".")[0] for name in final}
    for step in (0, 2, 4, 7, 9):
        visited.clear()
        copy = copy_until(whole.run, rows / f"from-{step}", step)
        resumed = foreword.train(base, settings(rows, resume=str(copy), **changes))
        assert equal(final_state(copy), final)
        assert equal(tensors(resumed.prefix), tensors(whole.prefix))
        assert untimed(resumed.history) == untimed(whole.history)
        assert visited == order[2 * step :]


def test_going_on_from_an_older_checkpoint_leaves_the_later_ones_behind(rows) -> None:
    base, changes = tiny_base(), dict[str, Any](checkpoint_every=2, keep_checkpoints=2)
    whole = foreword.train(base, settings(rows, "whole", **(changes | {"keep_checkpoints": 9})))
    chosen = whole.run / "checkpoints" / "step-000004"
    resumed = foreword.train(base, settings(rows, resume=str(chosen), **changes))
    assert untimed(resumed.history) == untimed(whole.history)
    assert [path.name for path in list_checkpoints(whole.run / "checkpoints")] == ["step-000010", "step-000012"]


def test_resume_keeps_the_patience_that_is_left(rows) -> None:
    """From every checkpoint of a run that stops early, those in a losing streak included."""
    base = tiny_base()
    changes: dict[str, Any] = {
        "steps": 60,
        "lr": 100.0,
        "scheduler": "constant",
        "validate_every": 1,
        "checkpoint_every": 1,
        "patience": 3,
        "keep_checkpoints": 99,
    }
    whole = foreword.train(base, settings(rows, "whole", **changes))
    assert whole.stopped_early
    stale = set()
    for step in range(whole.steps + 1):
        copy = copy_until(whole.run, rows / f"from-{step}", step)
        stale.add(read_state(list_checkpoints(copy / "checkpoints")[-1])[0].stale)
        resumed = foreword.train(base, settings(rows, resume=str(copy), **changes))
        assert (resumed.steps, resumed.stopped_early) == (whole.steps, True)
        assert equal(final_state(copy), final_state(whole.run))
        assert untimed(resumed.history) == untimed(whole.history)
    assert {0, 1, 2, 3} <= stale


def test_damaged_and_foreign_checkpoints_are_refused(rows) -> None:
    base = tiny_base()
    run = foreword.train(base, settings(rows)).run
    with pytest.raises(CheckpointError, match="batch_size 6, not 3"):
        foreword.train(base, settings(rows, resume=str(run), batch_size=3))
    with pytest.raises(CheckpointError, match="neither a checkpoint"):
        foreword.train(base, settings(rows, resume=str(rows / "nowhere")))
    file = list_checkpoints(run / "checkpoints")[-1] / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"oops")
    with pytest.raises(CheckpointError, match="digest differs"):
        foreword.train(base, settings(rows, resume=str(run)))


def test_a_resumed_run_takes_what_is_left_open_from_before(rows) -> None:
    base = tiny_base()
    whole = foreword.train(base, settings(rows, "whole"))
    for later in list_checkpoints(whole.run / "checkpoints")[1:]:
        shutil.rmtree(later)
    shutil.rmtree(whole.run / "prefix")
    config = dataclasses.replace(settings(rows, resume=str(whole.run)), lr=None, template=None, steps=None)
    resumed = foreword.train(base, dataclasses.replace(config, output=None))
    assert equal(tensors(resumed.prefix), tensors(whole.prefix))


def test_other_rows_or_weights_are_not_resumed(rows) -> None:
    run = foreword.train(tiny_base(), settings(rows, steps=2)).run
    with pytest.raises(CheckpointError, match="other weights"):
        foreword.train(tiny_base(seed=1), settings(rows, steps=2, resume=str(run)))
    lines = (rows / "train.jsonl").read_text().replace("plum", "lime")
    (rows / "train.jsonl").write_text(lines)
    with pytest.raises(CheckpointError, match="other data"):
        foreword.train(tiny_base(), settings(rows, steps=2, resume=str(run)))


ODD_NAMES = ["step-abc", "step-", "step-٣", "step--3", "step-1.5", "step-000005 ", "step-1e3", "step-" + "9" * 5000]


def test_what_has_another_name_is_no_checkpoint(rows) -> None:
    """Such folders, and a file of a checkpoint's name, are neither read nor removed."""
    base = tiny_base()
    run = foreword.train(base, settings(rows, steps=4, checkpoint_every=2, keep_checkpoints=2)).run
    newest = list_checkpoints(run / "checkpoints")[-1]
    odd = [run / "checkpoints" / name for name in ODD_NAMES if len(name) < 200]
    for path in odd:
        shutil.copytree(newest, path)
    (run / "checkpoints" / "step-1").write_text("a file")
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-000002", "step-000004"]
    assert foreword.train(base, settings(rows, steps=4, checkpoint_every=2, resume=str(run))).steps == 4
    assert all(path.is_dir() for path in odd)
    for name in ODD_NAMES:
        with pytest.raises(CheckpointError, match="has not the name of a checkpoint"):
            step_of(run / "checkpoints" / name)


def test_checkpoints_are_in_order_of_their_steps(tmp_path) -> None:
    """Beyond a million steps, too, where the names get longer."""
    for step in (1_000_000, 999_999, 20, 1_000_001):
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / f"step-{step:06d}" / "state.json").write_text("{}")
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [20, 999_999, 1_000_000, 1_000_001]
    prune(tmp_path, 2)
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [1_000_000, 1_000_001]
