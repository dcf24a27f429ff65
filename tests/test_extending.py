"""The examples of docs/extending.md run as they stand, each with one line in a registry."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foreword
from foreword.errors import ConfigError
from foreword.export import EXPORTERS, export_prefix
from foreword.methods import METHODS
from foreword.objectives import OBJECTIVES
from foreword.tasks import TASKS
from head_helpers import write
from tiny import tiny_base
from training_helpers import settings, write_rows

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def example(title: str) -> dict[str, Any]:
    """What the Python file below a heading defines."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    scope: dict[str, Any] = {"__name__": f"example_{title.replace(' ', '_')}"}
    exec(compile(code, str(PAGE), "exec"), scope)  # noqa: S102
    return scope


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path)


def test_a_method(rows, monkeypatch) -> None:
    monkeypatch.setitem(METHODS, "scaled", example("A method")["METHOD"])
    result = foreword.train(tiny_base(), settings(rows, method="scaled", lr=0.1, steps=6))
    assert result.validation_loss < result.history[0]["validation_loss"]
    assert result.prefix.record["trained_parameters"] == 2 * len(tiny_base().slots)


def test_an_objective(rows, monkeypatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "kl-to-base", example("An objective")["KLToBase"])
    result = foreword.train(tiny_base(), settings(rows, objective="kl-to-base", steps=12))
    losses = [row["loss"] for row in result.history if "loss" in row]
    assert losses[0] > 0
    assert losses[-1] < losses[0]


def test_an_objective_that_needs_the_plain_base_is_refused_where_there_is_none(tmp_path, rows, monkeypatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "kl-to-base", example("An objective")["KLToBase"])
    folder = tmp_path / "heads"
    folder.mkdir()
    config = settings(write(folder, "seq-cls"), objective="kl-to-base", task="seq-cls", template=None)
    with pytest.raises(ConfigError, match=r"objective: kl-to-base compares .* but task seq-cls trains a head"):
        foreword.train(tiny_base("bert"), config)
    assert not (folder / "run").exists()


def test_a_task(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(TASKS, "pair-cls", example("A task")["PairClassification"])
    for name, count in (("train", 24), ("valid", 8)):
        lines = [
            json.dumps({"first": f"a{i}", "second": "same" if i % 2 else "else", "label": ("no", "yes")[i % 2]})
            for i in range(count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    base = tiny_base("bert")
    result = foreword.train(base, settings(tmp_path, task="pair-cls", template=None, head_lr=0.02, steps=12))
    assert result.validation_loss < result.history[0]["validation_loss"]
    request = foreword.EvalConfig(data=str(tmp_path / "valid.jsonl"), prefix=str(result.run / "prefix"))
    metrics = foreword.evaluate(base, request).metrics
    assert metrics["loss"] == pytest.approx(result.validation_loss, rel=1e-4)
    assert set(metrics) == {"loss", "accuracy", "macro_f1"}


def test_an_export_format(rows, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(EXPORTERS, "npz", example("An export format")["Npz"])
    prefix = foreword.Prefix.from_text("a b c", tiny_base())
    assert "numpy.load" in export_prefix(prefix, "npz", tmp_path / "out")
    arrays = np.load(tmp_path / "out" / "prefix.npz")
    assert np.array_equal(arrays["decoder.0.key"], prefix.slots["decoder.0"].key.numpy())
