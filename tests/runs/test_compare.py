"""Runs side by side: settings that differ, results, curves, and what makes losses incomparable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import foreword
from foreword.errors import ConfigError
from foreword.runs import compare
from foreword.runs.comparing import MOST, value_texts
from foreword.runs.drawing import chart, ticks
from foreword.runs.history import MOST_POINTS, curves, thinned
from run_helpers import add_prefix, make_run
from tiny import tiny_base
from training_helpers import settings, write_rows


def test_real_runs(tmp_path) -> None:
    rows, base = write_rows(tmp_path), tiny_base()
    one = foreword.train(base, settings(rows, "one"))
    other = foreword.train(base, settings(rows, "other", lr=0.2, method="mlp", options={"hidden": 16}))
    found = compare(one.run, other.run / "prefix")
    assert found.settings == {"method": ("direct", "mlp"), "lr": (0.05, 0.2), "options": ({}, {"hidden": 16})}
    assert list(found.settings) == ["method", "options", "lr"], "in the order of the settings"
    assert found.shared["length"] == 4
    assert "output" not in {**found.settings, **found.shared}
    assert found.results["state"] == ("finished", "finished")
    assert found.results["trained parameters"][0] == f"{4 * 2 * 3 * 2 * 16:,}"
    assert found.cautions == ()
    for result, each in zip((one, other), found.curves, strict=True):
        assert [loss for _, loss in each.training] == [row["loss"] for row in result.history if "loss" in row]
        measured = [(row["step"], row["validation_loss"]) for row in result.history if "validation_loss" in row]
        assert list(each.validation) == measured
    assert "2 runs, 3 settings differ" in repr(found)
    assert json.loads(json.dumps(found.facts()))["runs"][1]["curves"]["validation"][0][0] == 0


def test_what_makes_losses_incomparable_is_told(tmp_path) -> None:
    for name, digest, model in (("a", "1", "org/x"), ("b", "2", "org/y")):
        run = make_run(tmp_path / name, model=model)
        add_prefix(run, data={"validation": {"digest": digest}, "training": {"digest": digest}})
    told = compare(tmp_path / "a", tmp_path / "b").cautions
    assert [line.partition(":")[0] for line in told] == [
        "the bases differ", "the held-out rows differ",
        "the training rows differ, although the settings name the same data",
    ]  # fmt: skip
    make_run(tmp_path / "c")
    make_run(tmp_path / "d", validation_rows=7)
    (caution,) = compare(tmp_path / "c", tmp_path / "d").cautions
    assert caution.startswith("validation_rows differ")


def test_settings_that_a_run_is_too_old_for_were_at_their_defaults(tmp_path) -> None:
    new = make_run(tmp_path / "new", unheard_of=3)
    old = make_run(tmp_path / "old", patience=True)
    config = json.loads((old / "config.json").read_text())
    del config["packing"]
    (old / "config.json").write_text(json.dumps(config))
    found = compare(new, old)
    assert found.settings == {"patience": (None, True), "unheard_of": (3, None)}
    assert found.shared["packing"] is True


def test_values_that_differ_look_different() -> None:
    assert value_texts([None, True, "a b", {"x": 1}]) == ("–", "true", "a b", '{"x": 1}')
    assert value_texts(["{input}\n", "{input} ", "{input}"]) == ('"{input}\\n"', '"{input} "', "{input}")
    long = "word " * 50
    one, other = value_texts([long + "one", long + "other"])
    assert (one, other) == ("…ord word word one", "…ord word word other")
    assert all(len(text) == 60 for text in value_texts(["x" * 100, "y" + long]))
    assert value_texts([long])[0].startswith('"word word')


def test_same_names_become_paths(tmp_path) -> None:
    runs = [make_run(tmp_path / place / "run") for place in ("a", "b")]
    assert compare(*runs).names == tuple(map(str, runs))


def test_what_cannot_be_compared(tmp_path) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "link").symlink_to(run, target_is_directory=True)
    for given in ([], [run], [run] * (MOST + 1)):
        with pytest.raises(ConfigError, match="two to 12 are compared"):
            compare(*given)
    with pytest.raises(ConfigError, match="link is given twice"):
        compare(run, tmp_path / "link")
    with pytest.raises(ConfigError, match="is no run folder"):
        compare(run, tmp_path)


def test_a_damaged_run_is_compared_as_far_as_it_goes(tmp_path) -> None:
    runs = [make_run(tmp_path / name) for name in ("a", "b", "c")]
    (runs[1] / "config.json").write_text("{")
    (runs[2] / "history.jsonl").unlink()
    found = compare(*runs)
    assert found.results["state"] == ("finished", "damaged", "broken off")
    assert found.settings["method"] == ("direct", None, "direct")
    assert [len(each.training) for each in found.curves] == [10, 10, 0]
    assert "config.json is not valid JSON" in found.results["problems"][1]


def test_a_long_history_becomes_means(tmp_path) -> None:
    count = 10 * MOST_POINTS + 3
    file = tmp_path / "history.jsonl"
    file.write_text("".join(json.dumps({"step": step, "loss": 2.0 * step}) + "\n" for step in range(1, count + 1)))
    found = curves(file).training
    assert MOST_POINTS // 2 <= len(found) <= MOST_POINTS + 1
    assert all(loss == pytest.approx(2 * step) for step, loss in found)
    assert [step for step, _ in found] == sorted(step for step, _ in found)
    assert found[-1][0] > count - 20
    fewer = thinned(found, 100)
    assert 50 <= len(fewer) <= 101
    assert all(loss == pytest.approx(2 * step) for step, loss in fewer)
    assert thinned(found[:7], 100) == found[:7]


@pytest.mark.parametrize("low", [-1e299, -3.0, 0.0, 1e-300, 2.345, 1e15])
@pytest.mark.parametrize("span", [1e-6, 0.37, 1.0, 1e4, 1e299])
def test_axes_have_a_few_round_numbers(low, span) -> None:
    high = max(low + span, low + 1e-9 * abs(low))  # what is narrower gets room around it
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    assert all(low <= value <= high for value in found)


def test_curves_stay_within_their_frame() -> None:
    drawn = chart("x", [[(0, 1e299), (5, -1e299)], [(3, 0.0)], []], marked=True)
    assert "nan" not in drawn
    assert "inf" not in drawn
    assert chart("x", [[], []], marked=True) == ""


def test_the_folder_of_a_run_is_left_as_it_was(tmp_path) -> None:
    runs = [make_run(tmp_path / name) for name in ("a", "b")]
    (runs[0] / "run.lock").touch()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    compare(*runs)
    assert {path: path.stat().st_mtime_ns for path in Path(tmp_path).rglob("*")} == before
