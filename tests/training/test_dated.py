"""A run whose chat template prints the date goes on the next day, with the date of the day it began."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

import foreword
from foreword.base.chat import environment
from foreword.config import TrainConfig
from foreword.errors import CheckpointError
from foreword.training.checkpoint import find_checkpoint, list_checkpoints, read_state
from tiny import tiny_base


class Clock:
    """A `datetime` whose day can be set."""

    day = 3

    @classmethod
    def now(cls) -> datetime:
        return datetime(2001, 2, cls.day, 12)

    fromisoformat = datetime.fromisoformat


@pytest.fixture
def base(monkeypatch) -> Any:
    made = tiny_base(chat=True)
    template = "{{ strftime_now('%Y-%m-%d') }}" + made.tokenizer.chat_template
    monkeypatch.setattr(made.tokenizer, "chat_template", template)
    monkeypatch.setattr(environment, "datetime", Clock)
    monkeypatch.setattr("foreword.training.resuming.datetime", Clock)
    return made


def settings(tmp_path, **changes: Any) -> TrainConfig:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "q", "completion": "a"}\n' * 20)
    values: dict[str, Any] = {
        "data": str(tmp_path / "rows.jsonl"),
        "length": 3,
        "steps": 6,
        "lr": 0.1,
        "output": str(tmp_path / "run"),
    }
    return TrainConfig(**(values | changes))


def test_a_run_goes_on_the_next_day(base, tmp_path, monkeypatch) -> None:
    run = foreword.train(base, settings(tmp_path, checkpoint_every=2)).run
    _, _, inputs = read_state(find_checkpoint(run))
    assert inputs["date"] == "2001-02-03"
    first = json.loads((run / "config.json").read_text())
    monkeypatch.setattr(Clock, "day", 4)
    older = list_checkpoints(run / "checkpoints")[0]
    again = foreword.train(base, settings(tmp_path, output=None, checkpoint_every=2, resume=str(older)))
    assert again.steps == first["steps"] == 6
    other = foreword.train(base, settings(tmp_path, output=str(tmp_path / "other"), checkpoint_every=2))
    _, _, fresh = read_state(find_checkpoint(other.run))
    assert fresh["date"] == "2001-02-04"
    assert fresh["data"] != inputs["data"]


def test_a_date_that_is_none_is_a_typed_error() -> None:
    from foreword.training.resuming import rendering_date

    for wrong in ("yesterday", 3, ["x"]):
        with pytest.raises(CheckpointError, match="as the date of its rows"):
            rendering_date({"date": wrong})
