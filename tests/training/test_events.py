"""The stream of events of a run: their order, what they say, and the file that keeps them."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import foreword
import head_helpers
from foreword.data import BadRow
from foreword.errors import ConfigError, StorageError
from foreword.training.events import (
    Event,
    EventFile,
    Finished,
    Sampled,
    Saved,
    Started,
    Stepped,
    Validated,
    all_of,
    to_row,
)
from tiny import tiny_base
from training_helpers import copy_until, equal, final_state, settings, tensors, write_rows

EXAMPLES: tuple[Event, ...] = (
    Started(Path("runs/1"), 8, 0, (BadRow("a.jsonl", 3, "no target"),)),
    Stepped(1, 2.5, 0.01, 100.0),
    Validated(0, 3.5, True),
    Sampled(0, "a.jsonl:1", "naïve ☃", "blue"),
    Saved(4, "prefix", Path("runs/1/prefix")),
    Finished(Path("runs/1"), 8, 1.5, False),
)


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path)


def events_of(base, config) -> tuple[foreword.training.TrainResult, list[Event]]:
    seen: list[Event] = []
    return foreword.train(base, config, seen.append), seen


def described(events: list[Event]) -> list[str]:
    """Each event's name with its step, and what was saved."""
    return [
        f"{to_row(event)['event']} {getattr(event, 'step', '')} {getattr(event, 'what', '')}".strip()
        for event in events
    ]


def test_events_come_in_the_order_of_what_happens(rows) -> None:
    result, events = events_of(tiny_base(), settings(rows, steps=3, validate_every=3, checkpoint_every=2, lr=1e-3))
    first, last = events[0], events[-1]
    names = described(events)
    assert names[:4] == ["started", "saved 0 prefix", "validated 0", "saved 0 checkpoint"]
    assert names[4:8] == ["stepped 1", "stepped 2", "saved 2 checkpoint", "stepped 3"]
    assert [name for name in names[8:] if name.startswith("validated")] == ["validated 3"]
    assert names[-2:] == ["saved 3 checkpoint", "finished 3"]
    assert first == Started(result.run, 3, 0)
    assert last == Finished(result.run, 3, result.validation_loss, False)


def test_events_say_what_the_history_and_the_disk_say(rows) -> None:
    result, events = events_of(tiny_base(), settings(rows, validate_every=2))
    stepped = [vars(event) for event in events if isinstance(event, Stepped)]
    assert stepped == [row for row in result.history if "loss" in row]
    validated = [event for event in events if isinstance(event, Validated)]
    losses = [row["validation_loss"] for row in result.history if "validation_loss" in row]
    assert [event.validation_loss for event in validated] == losses
    assert [event.best for event in validated] == [
        loss < min(losses[:at], default=float("inf")) for at, loss in enumerate(losses)
    ]
    best = [event.step for event in validated if event.best]
    saved = [event for event in events if isinstance(event, Saved)]
    assert [event.step for event in saved if event.what == "prefix"] == best
    assert {event.path for event in saved if event.what == "prefix"} == {result.run / "prefix"}
    assert all(event.path.is_dir() for event in saved)


def test_a_head_is_saved_before_its_prefix(tmp_path) -> None:
    rows = head_helpers.write(tmp_path, "seq-cls")
    config = head_helpers.config(rows, task="seq-cls", steps=2, validate_every=2, checkpoint_every=2)
    _, events = events_of(tiny_base("bert"), config)
    assert described(events)[:5] == ["started", "saved 0 head", "saved 0 prefix", "validated 0", "saved 0 checkpoint"]


def test_a_run_that_stops_early_says_so(rows) -> None:
    changes: dict[str, Any] = {"steps": 60, "lr": 100.0, "scheduler": "constant", "validate_every": 1, "patience": 2}
    result, events = events_of(tiny_base(), settings(rows, **changes))
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.stopped_early
    assert last.step == result.steps < 60
    assert last.validation_loss == result.validation_loss


def test_a_resumed_run_starts_where_it_went_on(rows) -> None:
    base = tiny_base()
    whole, events = events_of(base, settings(rows, "whole"))
    copy = copy_until(whole.run, rows / "copy", 8)
    _, later = events_of(base, settings(rows, resume=str(copy)))
    assert later[0] == Started(copy, 12, 8)
    at = next(index for index, event in enumerate(events) if isinstance(event, Stepped) and event.step == 9)
    assert described(later[1:]) == described(events[at:])


def test_samples_are_the_first_held_out_rows_answered_at_each_validation(rows) -> None:
    base = tiny_base()
    result, events = events_of(base, settings(rows, steps=4, validate_every=2, samples=2))
    sampled = [event for event in events if isinstance(event, Sampled)]
    valid = rows / "valid.jsonl"
    assert [(event.step, event.where) for event in sampled] == [
        (step, f"{valid}:{line}") for step in (0, 2, 4) for line in (1, 2)
    ]
    assert [event.target for event in sampled] == ["red", "green"] * 3
    best = max(event.step for event in events if isinstance(event, Validated) and event.best)
    request = foreword.EvalConfig(data=str(valid), prefix=str(result.run / "prefix"), metrics=("exact_match",), rows=2)
    assert foreword.evaluate(base, request).texts == [event.answer for event in sampled if event.step == best]
    assert len({event.answer for event in sampled}) > 1, "training changed no answer, so this test could not fail"


def test_samples_change_nothing_of_the_run(rows) -> None:
    base = tiny_base()
    changes = {"steps": 4, "validate_every": 2, "checkpoint_every": 2, "dropout": 0.3}
    plain = foreword.train(base, settings(rows, "plain", **changes))
    sampled = foreword.train(base, settings(rows, "sampled", samples=3, **changes))
    assert equal(final_state(sampled.run), final_state(plain.run))
    assert equal(tensors(sampled.prefix), tensors(plain.prefix))


def test_samples_of_a_task_with_a_head_are_classes(tmp_path) -> None:
    rows = head_helpers.write(tmp_path, "seq-cls")
    config = head_helpers.config(rows, task="seq-cls", steps=2, validate_every=2, checkpoint_every=2, samples=2)
    _, events = events_of(tiny_base("bert"), config)
    sampled = [event for event in events if isinstance(event, Sampled)]
    assert [(event.step, event.target) for event in sampled] == [(0, "red"), (0, "blue"), (2, "red"), (2, "blue")]
    assert {event.answer for event in sampled} <= {"red", "blue"}


def test_the_file_holds_one_json_object_a_line_for_each_event(rows) -> None:
    seen: list[Event] = []
    file = rows / "events.jsonl"
    foreword.train(tiny_base(), settings(rows, steps=2, samples=1), all_of(EventFile(file), seen.append))
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [to_row(event) for event in seen]
    assert {json.loads(line)["event"] for line in lines} == {
        "started", "stepped", "validated", "sampled", "saved", "finished",
    }  # fmt: skip


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_a_row_has_the_events_name_and_all_its_fields(tmp_path, event) -> None:
    EventFile(tmp_path / "events.jsonl")(event)
    row = json.loads((tmp_path / "events.jsonl").read_text(encoding="utf-8"))
    assert row == to_row(event)
    assert row.pop("event") == type(event).__name__.lower()
    assert list(row) == [item.name for item in fields(event)]
    for name, value in row.items():
        original = getattr(event, name)
        wanted = [str(entry) for entry in original] if isinstance(original, tuple) else original
        assert value == (str(wanted) if isinstance(wanted, Path) else wanted)


def test_a_file_that_cannot_be_written_is_a_typed_error(tmp_path) -> None:
    with pytest.raises(StorageError, match=r"nowhere"):
        EventFile(tmp_path / "nowhere" / "events.jsonl")(EXAMPLES[0])


def test_an_observer_that_fails_at_a_validation_loses_nothing(rows) -> None:
    """The prefix of that validation is saved, and the run goes on from its last checkpoint."""

    def failing(event: Event) -> None:
        if isinstance(event, Validated) and event.step == 4:
            raise StorageError("events.jsonl can't be written")

    whole = foreword.train(tiny_base(), settings(rows, "whole"))
    with pytest.raises(StorageError, match=r"events\.jsonl"):
        foreword.train(tiny_base(), settings(rows), failing)
    assert foreword.Prefix.load(rows / "run" / "prefix").record["step"] == 4
    resumed = foreword.train(tiny_base(), settings(rows, resume=str(rows / "run")))
    assert equal(tensors(resumed.prefix), tensors(whole.prefix))


def test_a_mixtures_rows_are_not_answered() -> None:
    with pytest.raises(ConfigError, match="samples: the rows of a mixture are not answered"):
        foreword.TrainConfig(samples=1, mixture={"a": {"data": "x"}})
