"""One row in a hundred spoilt, in every way: each is reported with file and line, and nothing is written."""

from __future__ import annotations

import json

import pytest

from foreword.base.rendering import Renderer
from foreword.cli.main import execute
from foreword.errors import DataError
from rows_helpers import load_examples
from tiny import byte_tokenizer, tiny_model

ROWS = 2000
SPOILT = range(50, ROWS, 100)  # 1 %
KINDS = {
    "not JSON": (b'{"input": "x", "target": ', "JSON"),
    "not UTF-8": (b'{"input": "\xff\xfe", "target": "x"}', "UTF-8"),
    "not an object": (b'["input", "target"]', "object"),
    "field missing": (b'{"input": "x"}', "'target' is missing"),
    "field empty": (b'{"input": "x", "target": "  "}', "'target' is empty"),
    "wrong type": (b'{"input": 7, "target": "x"}', "must be text, not int"),
    "null": (b'{"input": null, "target": "x"}', "must be text, not NoneType"),
    "half a surrogate": (b'{"input": "\\ud800", "target": "x"}', "surrogate"),
    "too long": (json.dumps({"input": "x" * 300, "target": "y"}).encode(), "more than the 200 allowed"),
    "NaN": (b'{"input": NaN, "target": "x"}', "JSON|must be text"),
    "references wrong": (b'{"input": "x", "references": "y"}', "references"),
}


@pytest.fixture
def spoilt(tmp_path):
    def write(bad: bytes):
        good = [json.dumps({"input": f"row {i}", "target": f"target {i}"}).encode() for i in range(ROWS)]
        for line in SPOILT:
            good[line] = bad
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"\n".join(good) + b"\n")
        return path

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_every_spoilt_row_is_reported(spoilt, kind) -> None:
    line, problem = KINDS[kind]
    path, renderer = spoilt(line), Renderer(byte_tokenizer(), "{input}=")
    with pytest.raises(DataError, match="20 bad rows") as raised:
        load_examples(str(path), renderer, max_tokens=200)
    assert len(raised.value.problems) == len(SPOILT)
    for number, said in zip(SPOILT, raised.value.problems, strict=True):
        assert said.startswith(f"{path}:{number + 1}: ")
        assert any(part in said for part in problem.split("|")), said
    examples, bad = load_examples(str(path), renderer, max_tokens=200, max_bad_rows=20)
    assert len(examples) == ROWS - len(SPOILT)
    assert [row.line for row in bad] == [number + 1 for number in SPOILT]


def test_an_open_quote_hides_no_line(tmp_path) -> None:
    """CSV: the quote takes all lines after it; each is counted."""
    lines = ["input,target", *(f"row {i},target {i}" for i in range(1000))]
    lines[5] = 'row 4,"target 4'
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    renderer = Renderer(byte_tokenizer(), "{input}=")
    with pytest.raises(DataError, match="996 bad rows"):
        load_examples(str(tmp_path / "rows.csv"), renderer, max_bad_rows=1)
    examples, bad = load_examples(str(tmp_path / "rows.csv"), renderer, max_bad_rows=996)
    assert len(examples) + len(bad) == 1000
    assert "swallowed by the row that begins in line 6" in str(bad[-1])


def test_the_command_line_names_every_one(spoilt, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = spoilt(KINDS["not JSON"][0])
    tiny_model("llama").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    arguments = [
        "train",
        "--model",
        "model",
        "--data",
        str(path),
        "--template",
        "{input}=",
        "--output",
        "run",
        "--steps",
        "1",
    ]
    assert execute(arguments) == 1
    said = capsys.readouterr().err
    for number in SPOILT:
        assert said.count(f"{path}:{number + 1}: ") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["train", "eval"])
def test_of_many_rows_that_are_left_out_a_few_are_named(spoilt, tmp_path, capsys, verb) -> None:
    """As many as there are rows could be left out; they would fill the terminal."""
    path = spoilt(b"no JSON")
    tiny_model("llama").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    given = ["--data", str(path), "--model", str(tmp_path / "model"), "--max-bad-rows", "20"]
    train = ["--length", "2", "--steps", "1", "--output", str(tmp_path / "run")]
    measure = ["--rows", "1900", "--metrics", "loss", "--batch-size", "200"]
    assert execute([verb, *given, *(train if verb == "train" else measure)]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert [line.partition(": ")[0] for line in said] == ["note"] * 6
    assert f"left out {path}:51: " in said[0]
    assert said[-1].startswith("note: and ")
    assert said[-1].endswith(" more rows left out")
