"""Every error has an entry in docs/troubleshooting.md, and names it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from foreword import errors
from foreword.cli.main import execute

PAGE = Path(__file__).parents[1] / "docs" / "troubleshooting.md"
KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.ForewordError)]


def test_each_error_has_an_entry_and_each_entry_an_error() -> None:
    headings = set(re.findall(r"^## (\w+(?:Error))$", PAGE.read_text(), re.MULTILINE))
    assert headings == {kind.__name__ for kind in KINDS}
    warned = {kind.__name__ for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Warning)}
    assert warned == set(re.findall(r"^- `(\w+Warning)`", PAGE.read_text(), re.MULTILINE))


def test_the_anchor_is_that_of_the_heading() -> None:
    class Plugged(errors.ExportError):
        """Of another package."""

    assert Plugged("x").anchor == "troubleshooting#exporterror"
    assert errors.InterruptedRunError("x", 2).anchor == "troubleshooting#interruptedrunerror"


def test_the_command_line_names_the_entry(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert execute(["show", "nothing"]) == 1
    assert capsys.readouterr().err.rstrip().endswith("(help: troubleshooting#prefixformaterror)")
