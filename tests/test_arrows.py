"""Imports point one way: the layers of pyproject.toml, and no circle of files anywhere.

Imports within functions and under TYPE_CHECKING count.
"""

from __future__ import annotations

import graphlib
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent


def circle(package: str) -> list[str]:
    """The files of a circle of imports; empty if there is none."""
    graph = grimp.build_graph(package, cache_dir=None)
    arrows = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_circle_of_files() -> None:
    assert circle("foreword") == []


@pytest.mark.parametrize(
    "back",
    [
        "import circled.high",
        "def late():\n    import circled.high",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from circled.high import name",
    ],
)
def test_a_circle_would_be_found(tmp_path, monkeypatch, back) -> None:
    package = tmp_path / "circled"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "high.py").write_text("import circled.low\nname = 1\n")
    (package / "low.py").write_text(f"{back}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "circled", raising=False)
    assert set(circle("circled")) == {"circled.high", "circled.low"}
    (package / "low.py").write_text("")
    assert circle("circled") == []


def test_every_room_has_its_layer() -> None:
    """`lint-imports` holds the layers; here, that none is missing from the list."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers"]
    listed = {name.strip(" ()") for line in layers for name in line.split("|")}
    source = ROOT / "src" / "foreword"
    rooms = {entry.stem for entry in source.iterdir() if entry.suffix == ".py" or (entry / "__init__.py").is_file()}
    assert rooms - {"__init__", "__main__", "_version"} == listed


def test_files_stay_short() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / "src").rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 300
    }
    assert long == {}
