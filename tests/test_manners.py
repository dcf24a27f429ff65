"""Results are a few lines, for notebooks a table, and lists stand wherever tuples do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import foreword
from foreword.compression.choices import UNCOMPRESSED
from foreword.compression.forms import Compressed
from foreword.compression.pick import MeasuredChoice
from foreword.config import CompressConfig, EvalConfig, TrainConfig
from foreword.errors import ConfigError
from foreword.shown import grouped
from tiny import tiny_base
from training_helpers import settings, write_rows

HOSTILE = "<script>alert(1)</script>\x1b[31m\n\n"


def results(tmp_path) -> list[Any]:
    base = tiny_base()
    trained = foreword.train(base, settings(write_rows(tmp_path)))
    config = EvalConfig(data=str(tmp_path / "valid.jsonl"), metrics=["loss", "exact_match"])  # type: ignore[arg-type]
    evaluated = foreword.evaluate(base, config, trained.prefix)
    choice = MeasuredChoice(UNCOMPRESSED, Compressed(trained.prefix, {}), 4, 1000, 1.5, None)
    return [
        trained,
        trained.prefix,
        evaluated,
        foreword.CompressResult((choice, choice), choice, tmp_path),
        choice,
        base,
    ]


def test_every_result_is_one_to_five_lines_without_tensors(tmp_path) -> None:
    for result in results(tmp_path):
        lines = repr(result).split("\n")
        assert 1 <= len(lines) <= 5, result
        assert all(len(line) <= 220 for line in lines)
        assert "tensor(" not in repr(result)


def test_notebooks_get_tables_with_everything_escaped(tmp_path) -> None:
    trained, prefix, evaluated, compressed, *_ = results(tmp_path)
    for result in (trained, prefix, evaluated, compressed):
        html = result._repr_html_()
        assert html.startswith("<table>")
        assert "tensor(" not in html
    hostile = replace(prefix, base=replace(prefix.base, source=HOSTILE, architecture=HOSTILE), method=HOSTILE)
    html = hostile._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "\x1b" not in html + repr(hostile)
    assert len(repr(hostile).split("\n")) <= 5


def test_slots_are_grouped() -> None:
    assert grouped([f"decoder.{i}" for i in range(30)]) == "decoder.0–29"
    assert grouped(["encoder.0", "encoder.1", "decoder.0", "cross.2", "cross.4"]) == (
        "encoder.0–1, decoder.0, cross.2, cross.4"
    )
    assert grouped([f"decoder.{i}" for i in range(0, 20, 2)]).endswith("decoder.6 and 6 more")


def test_lists_are_accepted_wherever_tuples_are() -> None:
    lists: Any = {"slots": ["decoder.0-1"], "trackers": []}
    assert TrainConfig(**lists) == TrainConfig(slots=("decoder.0-1",), trackers=())
    metrics: Any = ["loss"]
    assert EvalConfig(metrics=metrics).metrics == ("loss",)
    choices: Any = ["int8"]
    assert CompressConfig(choices=choices).choices == ("int8",)
    for wrong in ({"slots": [3]}, {"trackers": [["x"]]}, {"trackers": "tensorboard"}):
        given: Any = wrong
        with pytest.raises(ConfigError, match="must be a list of text"):
            TrainConfig(**given)
