"""Defaults that hold at any size: warm-up, validations, checkpoints, and what a short run and a long one say."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import foreword
from foreword import status
from foreword.cli import flags
from foreword.config import TrainConfig
from foreword.errors import ConfigError
from foreword.settings import build, to_dict
from foreword.tasks import summed_loss
from foreword.training import keeping, validation
from foreword.training.checkpoint import list_checkpoints, save_checkpoint
from foreword.training.forecast import MENDED_AFTER, Forecast
from foreword.training.plan import LEAST_RATIO, SHARE, measured_rows, planned
from foreword.training.resuming import with_saved_settings
from foreword.training.schedule import learning_rate, warmup_steps
from status_helpers import Clock, Heard
from tiny import tiny_base
from training_helpers import equal, final_state, history_of, settings, tensors, untimed, write_rows


@dataclass(frozen=True)
class Row:
    num_tokens: int


def rows_of(count: int, tokens: int = 50) -> list[Any]:
    return [Row(tokens) for _ in range(count)]


def open_settings(rows: Path, name: str = "run", **changes: Any) -> TrainConfig:
    """`settings` with warm-up and validations left open."""
    return settings(rows, name, **({"warmup": None, "validate_every": None} | changes))


@pytest.mark.parametrize(("steps", "expected"), [(1, 1), (8, 1), (60, 3), (100, 5), (200, 10), (50_000, 10)])
def test_warm_up_is_a_share_of_the_steps_by_default(steps, expected) -> None:
    config = planned(TrainConfig(), rows_of(1000), rows_of(96), steps)
    assert config.warmup == expected
    assert warmup_steps(config.warmup, steps) == expected


@pytest.mark.parametrize(
    ("given", "steps"), [("10%", 8), ("0.1", 8), ("3", 3), (3, 3), (0.1, 8), (0, 0), ("0", 0), ("99.9%", 80)]
)
def test_warm_up_takes_steps_and_shares(given, steps) -> None:
    config = build(TrainConfig, {"warmup": given})
    assert warmup_steps(config.warmup, 80) == steps
    assert planned(config, rows_of(1000), rows_of(96), 80).warmup == config.warmup


@pytest.mark.parametrize("given", ["100%", "1.5", 2.5, "-1", "-5%", "some"])
def test_other_warm_ups_are_refused(given) -> None:
    with pytest.raises(ConfigError, match="warmup: must be"):
        build(TrainConfig, {"warmup": given})


def test_the_flag_takes_both() -> None:
    assert build(TrainConfig, flags.values(TrainConfig, {"warmup": "10%"})).warmup == 0.1
    assert build(TrainConfig, flags.values(TrainConfig, {"warmup": "12"})).warmup == 12


def test_a_run_of_eight_steps_gets_to_its_peak(tmp_path) -> None:
    result = foreword.train(tiny_base(), open_settings(write_rows(tmp_path), steps=8))
    rates = [row["learning_rate"] for row in result.history if "loss" in row]
    assert rates[0] == 0.05
    assert rates == sorted(rates, reverse=True)
    assert json.loads((result.run / "config.json").read_text())["warmup"] == 1
    assert learning_rate(8, 8, 0.05, 10, 0.1, "linear") < 0.05  # with ten steps of warm-up it never would


SIZES = [(rows, held, batch, steps) for rows in (7, 40, 900, 40_000) for held in (1, 6, 96) for batch in (1, 16)
         for steps in (1, 3, 8, 30, 400, 9000)]  # fmt: skip


def test_validation_never_costs_more_than_a_tenth_of_training_by_default() -> None:
    """In validations' tokens; an update costs at least `LEAST_RATIO` times as much a token."""
    fewer = 0
    for rows, held, batch, steps in SIZES:
        for tokens in (50, 7):
            training, held_out = rows_of(rows), rows_of(held, tokens)
            config = planned(TrainConfig(batch_size=batch), training, held_out, steps)
            measured = measured_rows(config, training, held_out, steps)
            validations = 1 + math.ceil(steps / int(config.validate_every or 0))
            assert 2 <= validations <= 11
            cost = validations * len(measured) * tokens
            worth = LEAST_RATIO * steps * min(batch, rows) * 50
            assert cost <= SHARE * worth or len(measured) == 1, (rows, held, batch, steps, tokens)
            fewer += len(measured) < held
            if steps == 9000 and held == 96 and batch == 16:
                assert (validations, len(measured)) == (11, 96)  # a long run has all of both
    assert fewer > 10


def test_what_a_run_really_validates_is_a_tenth(tmp_path, monkeypatch) -> None:
    rows, seen = write_rows(tmp_path), [0]

    def counting(task, items, *arguments):
        seen[0] += sum(item.num_tokens for item in items)
        return summed_loss(task, items, *arguments)

    monkeypatch.setattr(validation, "summed_loss", counting)
    result = foreword.train(tiny_base(), open_settings(rows, steps=40, batch_size=12))
    mean = sum(len(json.loads(line)["input"]) + len(json.loads(line)["target"]) + 2
               for line in (rows / "train.jsonl").read_text().splitlines()) / 24  # fmt: skip
    assert 0 < seen[0] <= SHARE * LEAST_RATIO * 40 * 12 * mean * 1.05
    assert len([row for row in result.history if "validation_loss" in row]) >= 3


def test_what_is_asked_for_is_done(tmp_path) -> None:
    """A validation at every step, or on every row, costs what it costs."""
    training, held_out = rows_of(40), rows_of(96)
    every = planned(TrainConfig(validate_every=1), training, held_out, 8)
    assert (every.validate_every, every.validation_share) == (1, None)
    assert len(measured_rows(every, training, held_out, 8)) == 96
    for count in (None, 95):
        asked = planned(TrainConfig(validation_rows=count), training, held_out, 8)
        assert len(measured_rows(asked, training, held_out, 8)) == 96
    larger = planned(build(TrainConfig, {"validation_share": "50%"}), training, held_out, 80)
    smaller = planned(TrainConfig(), training, held_out, 80)
    assert int(larger.validate_every or 0) < int(smaller.validate_every or 0)


def test_a_resumed_run_validates_as_the_whole_one_does(tmp_path) -> None:
    """With everything left open, stopped by a signal-like error and gone on: bit for bit the same."""
    base, rows = tiny_base(), write_rows(tmp_path)
    changes: dict[str, Any] = {"steps": 14, "validation": None}
    whole = foreword.train(base, open_settings(rows, "whole", **changes))

    def stop(event) -> None:
        if getattr(event, "learning_rate", None) is not None and event.step == 9:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        foreword.train(base, open_settings(rows, **changes), stop)
    resumed = foreword.train(base, open_settings(rows, resume=str(rows / "run"), **changes))
    assert equal(final_state(resumed.run), final_state(whole.run))
    assert equal(tensors(resumed.prefix), tensors(whole.prefix))
    assert history_of(resumed.run) == untimed(whole.history)


def test_a_run_of_an_older_version_goes_on_as_it_was(tmp_path) -> None:
    """There `warmup` was 10, `validate_every` open, and every validation took all rows."""
    recorded = to_dict(TrainConfig(steps=35, lr=0.1)) | {"warmup": 10, "validate_every": None}
    del recorded["validation_share"]
    config = with_saved_settings(TrainConfig(resume="run"), tmp_path, recorded)
    assert (config.warmup, config.validate_every, config.validation_share) == (10, 3, None)
    again = planned(config, rows_of(10), rows_of(96), 35)
    assert again == config
    assert len(measured_rows(again, rows_of(10), rows_of(96), 35)) == 96


def test_checkpoints_take_at_most_a_tenth_of_the_time_by_default(tmp_path, monkeypatch) -> None:
    rows, base = write_rows(tmp_path), tiny_base()

    def slow(*arguments):
        time.sleep(0.3)
        return save_checkpoint(*arguments)

    monkeypatch.setattr(keeping, "save_checkpoint", slow)
    kept = {}
    for every in (None, 4):
        result = foreword.train(base, settings(rows, f"run{every}", steps=20, checkpoint_every=every))
        kept[every] = [path.name for path in list_checkpoints(result.run / "checkpoints")]
    assert kept[4] == [f"step-{step:06d}" for step in (0, 4, 8, 12, 16, 20)]
    assert kept[None][0] == "step-000000"
    assert kept[None][-1] == "step-000020"
    assert len(kept[None]) < 6


def rows_file(folder: Path, count: int) -> str:
    lines = [json.dumps({"input": f"q{i}", "target": f"answer {i % 3}"}) for i in range(count)]
    (folder / f"rows{count}.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / f"rows{count}.jsonl")


def of_rows(folder: Path, count: int, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "data": rows_file(folder, count), "template": "{input}=", "length": 3, "lr": 0.01, "trackers": (),
              "output": str(folder / f"run{count}")}  # fmt: skip
    return TrainConfig(**(values | changes))


@pytest.mark.parametrize("count", [2, 8, 9, 10])
def test_eight_rows_train_by_default(tmp_path, count) -> None:
    heard = Heard()
    with status.listening(heard):
        result = foreword.train(tiny_base(), of_rows(tmp_path, count))
    assert result.prefix.record["training_rows"] == count - 1
    short = next(note for note in heard.notes if note.startswith("a short run: "))
    assert "3 steps, after which the loss is likely to be still falling" in short
    assert f"{count - 1} training row{'s' * (count > 2)}, fewer than a batch of 16" in short
    assert "a validation loss of 1 held-out row, which says little (more with --validation)" in short
    assert "warm-up" not in short


def test_a_single_row_can_not_be_held_out(tmp_path) -> None:
    with pytest.raises(ConfigError, match="validation: 1 row is too few to hold some out; name a validation file"):
        foreword.train(tiny_base(), of_rows(tmp_path, 1))


def test_a_warm_up_as_long_as_the_run_is_told(tmp_path) -> None:
    heard = Heard()
    with status.listening(heard):
        foreword.train(tiny_base(), of_rows(tmp_path, 8, warmup=10))
    assert any("a warm-up of 10 steps, so that" in note for note in heard.notes)


def test_a_run_of_ordinary_length_warns_of_nothing(tmp_path) -> None:
    heard = Heard()
    with status.listening(heard):
        foreword.train(tiny_base(), of_rows(tmp_path, 300, steps=30))
    assert not [note for note in heard.notes if note.startswith("a short run")]
    assert [note for note in heard.notes if note.startswith("30 steps, 1.78 times over 270 rows, about ")]


def test_the_forecast_comes_first_and_is_mended_by_the_first_steps() -> None:
    heard, clock = Heard(), Clock()
    forecast = Forecast(1200, 800.0, 10, clock)
    with status.listening(heard):
        forecast.announce("", 5.0, 8000)
        assert heard.notes == ["1,200 steps, about 21 min"]  # 1,200 · 2 · 800 · 5/8000 s, and ten validations of 5 s
        for step in range(1, MENDED_AFTER + 3):
            forecast.stepped(step)
            clock.now += 2.0
    assert heard.notes[1:] == ["the remaining 1,195 steps take about 41 min"]


def test_a_right_forecast_is_left_alone() -> None:
    heard, clock = Heard(), Clock()
    forecast = Forecast(1200, 800.0, 10, clock)
    with status.listening(heard):
        forecast.announce("", 5.0, 8000)
        for step in range(1, 20):
            forecast.stepped(step)
            clock.now += 1.1
    assert len(heard.notes) == 1


def test_the_forecast_stands_before_the_first_step(tmp_path) -> None:
    order: list[str] = []

    class Both(Heard):
        def note(self, text: str) -> None:
            order.append(text)

        def doing(self, what: str, done: int = 0, total: int | None = None, detail: str = "") -> None:
            order.append(what)

    with status.listening(Both()):
        foreword.train(tiny_base(), settings(write_rows(tmp_path), steps=3))
    told = next(index for index, text in enumerate(order) if text.startswith("3 steps, "))
    assert "validating" in order[:told]
    assert "step" not in order[:told]
    assert "step" in order[told:]
