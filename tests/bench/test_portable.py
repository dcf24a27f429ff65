"""make portable names the row and the column of a text that differs."""

from __future__ import annotations

from pathlib import Path

import pytest

import portable


def test_a_text_that_differs_is_named() -> None:
    same = {"Foreword": ["x", "y"], "PEFT": ["x", "y"]}
    assert portable.differences(["a.f", "b.g"], same) == []
    other = same | {"mlx-lm": ["x", "z"]}
    assert portable.differences(["a.f", "b.g"], other) == ["b.g, mlx-lm: 'z' instead of 'y'"]


def test_a_missing_engine_is_named(tmp_path) -> None:
    with pytest.raises(SystemExit, match="has no llama-server; make portable installs it"):
        portable.llama_server(tmp_path)


def test_the_newest_prefix_is_taken(tmp_path, monkeypatch) -> None:
    import os

    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("demo-2", "demo-1")):
        folder = tmp_path / "runs" / name / "run" / "prefix"
        folder.mkdir(parents=True)
        os.utime(folder, (1000 + age, 1000 + age))
    assert portable.newest_prefix() == Path("runs/demo-1/run/prefix")
