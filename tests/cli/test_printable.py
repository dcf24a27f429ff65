"""Texts from files can't steer a terminal: not in what commands print, not in errors, not in JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from foreword.cli.common import err, note, out, print_json, printable
from foreword.cli.main import execute
from foreword.errors import DataError
from foreword.prefix import Prefix
from prefix_helpers import small

HOSTILE = [
    "\x1b[31m",
    "\x1b]0;title\x07",
    "\r",
    "\x9b31m",
    "\x7f",
    "\u202e",
    "\u2066",
    "\u200f",
    "\u2028",
    "\x00",
    "\x85",
]
ALL = "".join(HOSTILE)


def raw(text: str) -> list[str]:
    """The characters in `text` that could steer a terminal."""
    return [character for character in text if character != "\n" and printable(character) != character]


def test_printable_escapes_each_of_them_and_nothing_else() -> None:
    for text in HOSTILE:
        assert not raw(printable(text)), text
    assert printable("\x1b[31m") == r"\x1b[31m"
    assert printable("a\u202eb\r\ud800") == r"a\u202eb\x0d\ud800"
    plain = "Grüße, 世界 👩‍👩‍👧 {input} é ~ \u00a0 می‌خواهم"
    assert printable(plain) == plain
    assert printable("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"
    assert len(raw(ALL)) >= len(HOSTILE)


def hostile_prefix(folder: Path) -> Path:
    plain = small()
    base = dataclasses.replace(plain.base, source=f"org/{ALL}", architecture=ALL, weights=ALL, quantisation=ALL)
    record = {"template": f"{{input}}{ALL}", "step": ALL, "validation_loss": float(1), ALL: ALL}
    return Prefix(plain.slots, 3, base, method=ALL, record=record).save(folder)


@pytest.fixture
def hostile(tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    return str(hostile_prefix(tmp_path / f"p{ALL.replace(chr(0), '')}"))


def test_show_prints_no_escape_codes(hostile, capsys) -> None:
    assert execute(["show", hostile]) == 0
    printed = capsys.readouterr().out
    assert not raw(printed)
    assert r"\x1b[31m" in printed
    assert r"\u202e" in printed
    assert "{input}" in printed


def test_json_is_valid_and_has_no_raw_control_characters(hostile, capsys) -> None:
    assert execute(["show", hostile, "--json"]) == 0
    printed = capsys.readouterr().out
    assert not raw(printed)
    assert json.loads(printed)["record"]["template"] == f"{{input}}{ALL}"
    print_json({"loss": float("nan"), "rates": [float("inf"), 0.5], "text": "\ud800é"})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"loss": None, "rates": [None, 0.5], "text": "\ud800é"}
    assert "é" in printed


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", f"x{ALL}"],
        ["generate", "x", "--prefix", f"x{ALL}"],
        ["eval", "--data", f"x{ALL}.jsonl", "--prefix", f"x{ALL}"],
        ["train", f"x{ALL}.yaml"],
        ["train", "--data", "x", "--set", f"x{ALL}=1"],
        ["slots", f"./x{ALL}"],
        ["export", f"x{ALL}", "--output", "y"],
        [f"verb{ALL}"],
        ["show", f"--x{ALL}"],
        ["train", "--steps", ALL],
    ],
)
def test_errors_print_no_escape_codes(arguments, capsys) -> None:
    assert execute(arguments) in (1, 2)
    captured = capsys.readouterr()
    assert captured.err
    assert not raw(captured.err + captured.out)


def test_bad_rows_and_notes_print_no_escape_codes(capsys, monkeypatch) -> None:
    def bad(path):
        raise DataError(f"first{ALL}", [f"problem{ALL}"] * 12)

    monkeypatch.setattr("foreword.prefix.Prefix.load", bad)
    assert execute(["show", "x"]) == 1
    note(ALL)
    out().print(ALL)
    err().print(f"note: {ALL}", soft_wrap=True)
    captured = capsys.readouterr()
    assert captured.err.count("bad row: problem") == 9  # the error's own text names the first three
    assert not raw(captured.err + captured.out)


def test_answers_steer_no_terminal_but_reach_a_file_as_they_are(place, capsys, monkeypatch) -> None:
    monkeypatch.setattr("foreword.base.Base.generate", lambda *_, **__: ["one\x9b31m\ntwo"])
    assert execute(["generate", "x", "--model", "model"]) == 0
    assert capsys.readouterr().out == "one\x9b31m\ntwo\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("foreword.base.Base.stream", lambda *_, **__: iter(["one\x9b31m\ntwo"]))
    assert execute(["generate", "x", "--model", "model"]) == 0
    assert capsys.readouterr().out == "one\\x9b31m\ntwo\n"
