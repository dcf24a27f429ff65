"""`foreword generate`: what training reads is answered, each row by its prefix, sampled, and streamed."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from foreword.cli import common
from foreword.cli.main import execute
from tiny import byte_tokenizer, tiny_model

LOADED = cache(common.load_base)
ROWS = [{"title": f"t{i}", "text": f"q{i}", "target": "yes" if i % 2 else "no"} for i in range(20)]
FAST = ["--max-new-tokens", "6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """A chat model and three runs: two of messages, one of a template with two fields."""
    made = tmp_path_factory.mktemp("generate")
    before = Path.cwd()
    os.chdir(made)
    tiny_model("llama").save_pretrained("model")
    byte_tokenizer(chat=True).save_pretrained("model")
    talks = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "x"}]} for i in range(20)
    ]
    Path("chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks))
    Path("fields.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    train = ["--model", "model", "--length", "3", "--steps", "2", "--lr", "0.5"]
    for name, seed in (("one", "1"), ("two", "2")):
        assert execute(["train", "--data", "chat.jsonl", "--output", f"runs/{name}", "--seed", seed, *train]) == 0
    fields = ["--data", "fields.jsonl", "--template", "{title}: {text}\\n", "--output", "runs/it's two fields"]
    assert execute(["train", *fields, *train]) == 0
    yield made
    os.chdir(before)


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch) -> None:
    monkeypatch.setattr(common, "load_base", LOADED)


def answered(capsys: Any, *arguments: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert execute(["generate", *FAST, "--json", *arguments]) == code
    said = capsys.readouterr()
    return json.loads(said.out) if code == 0 else said.err


def texts(entries: list[dict[str, Any]]) -> list[str]:
    return [entry["text"] for entry in entries]


def test_rows_of_a_file_in_any_shape(folder, capsys) -> None:
    expected = texts(answered(capsys, "--prefix", "runs/one", "q0", "q1"))
    files: dict[str, list[dict[str, Any]]] = {
        "m.jsonl": [{"messages": [{"role": "user", "content": f"q{i}"}]} for i in range(2)],
        "s.json": [{"conversations": [{"from": "human", "value": f"q{i}"}]} for i in range(2)],
        "p.jsonl": [{"prompt": f"q{i}", "completion": "x"} for i in range(2)],
        "a.jsonl": [{"instruction": f"q{i}", "input": ""} for i in range(2)],
    }
    for name, rows in files.items():
        many = "".join(json.dumps(row) + "\n" for row in rows)
        Path(name).write_text(json.dumps(rows) if name.endswith("json") else many)
        found = answered(capsys, "--prefix", "runs/one", "--file", name)
        assert texts(found) == expected, name
        assert [entry["input"] for entry in found] == rows
    Path("lines.txt").write_text("q0\n\nq1\n")
    assert texts(answered(capsys, "--prefix", "runs/one", "--file", "lines.txt")) == expected


def test_a_run_folder_is_its_prefix(folder, capsys) -> None:
    assert answered(capsys, "--prefix", "runs/one", "q") == answered(capsys, "--prefix", "runs/one/prefix", "q")


def test_each_input_has_a_prefix(folder, capsys) -> None:
    one, two, plain = (
        texts(answered(capsys, *given, "q"))[0]
        for given in (["--prefix", "runs/one"], ["--prefix", "runs/two"], ["--model", "model"])
    )
    assert len({one, two, plain}) == 3
    both = ["--prefix", "runs/one", "--prefix", "runs/two"]
    found = answered(capsys, *both, "q", "q")
    assert [(entry["text"], entry["prefix"]) for entry in found] == [(one, "one"), (two, "two")]
    rows = [{"prompt": "q", "prefix": name} for name in ("two", "runs/one", "runs/two/prefix", None, "one")]
    Path("mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert texts(answered(capsys, *both, "--file", "mixed.jsonl")) == [two, one, two, plain, one]
    styled = [{"prompt": "q", "style": name} for name in ("two", "one")]
    Path("styled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in styled))
    assert texts(answered(capsys, *both, "--file", "styled.jsonl", "--prefix-field", "style")) == [two, one]


@pytest.mark.parametrize(
    ("rows", "arguments", "problem"),
    [
        (["q"] * 3, [], "2 prefixes for 3 inputs; give one for all, one for each, or rows with a column that names"),
        ([{"prompt": "q", "prefix": "three"}], [], "input 1: prefix 'three' is none of the prefixes: one, two"),
        ([{"prompt": "q", "prefix": ["one"]}], [], "input 1: prefix ['one'] is none of the prefixes: one, two"),
        ([{"prompt": "q"}], ["--prefix-field", "style"], "input 1 has no field 'style'"),
    ],
)
def test_a_prefix_that_cant_be_told(folder, capsys, rows, arguments, problem) -> None:
    lines = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    name = "wrong.txt" if isinstance(rows[0], str) else "wrong.jsonl"
    Path(name).write_text(lines)
    both = ["--prefix", "runs/one", "--prefix", "runs/two"]
    assert problem in answered(capsys, *both, "--file", name, *arguments, code=2)


def test_the_command_that_train_prints_works(folder, capsys) -> None:
    for run in ("one", "it's two fields"):
        capsys.readouterr()
        data = (
            ["--data", "chat.jsonl"] if run == "one" else ["--data", "fields.jsonl", "--template", "{title}: {text}\\n"]
        )
        train = ["--model", "model", "--length", "3", "--steps", "1", "--output", f"runs/again {run}", *data]
        assert execute(["train", *train]) == 0
        printed = capsys.readouterr().out.partition("use it")[2].strip().splitlines()[0]
        words = shlex.split(printed)
        assert words[:2] == ["foreword", "generate"]
        assert execute(words[1:]) == 0, printed


def test_a_head_is_evaluated(folder, capsys) -> None:
    Path("labels.jsonl").write_text("".join(json.dumps({"text": r["text"], "label": r["target"]}) + "\n" for r in ROWS))
    capsys.readouterr()
    train = ["--model", "model", "--length", "3", "--steps", "1", "--output", "runs/labels", "--data", "labels.jsonl"]
    assert execute(["train", *train, "--task", "seq-cls"]) == 0
    printed = capsys.readouterr().out.partition("use it")[2].strip().splitlines()[0]
    assert shlex.split(printed) == ["foreword", "eval", "--prefix", "runs/labels/prefix", "--data", "labels.jsonl"]
    assert execute(shlex.split(printed)[1:]) == 0


def test_a_json_argument_is_a_row_where_a_text_cant_be_meant(folder, capsys) -> None:
    run = "runs/it's two fields"
    row = {"title": "t", "text": "q"}
    (found,) = answered(capsys, "--prefix", run, json.dumps(row))
    assert found["input"] == row
    (found,) = answered(capsys, "--prefix", "runs/one", json.dumps(row))
    assert found["input"] == json.dumps(row)
    (found,) = answered(capsys, "--prefix", "runs/one", json.dumps({"messages": [{"role": "user", "content": "q"}]}))
    assert found["text"] == texts(answered(capsys, "--prefix", "runs/one", "q"))[0]
    assert "is one text, but the template" in answered(capsys, "--prefix", run, "q", code=2)


def test_rows_and_lines_from_stdin(folder, capsys, monkeypatch) -> None:
    import io

    expected = texts(answered(capsys, "--prefix", "runs/one", "q0", "q1"))
    for text in ("q0\nq1\n", '{"prompt": "q0"}\n{"prompt": "q1"}\n'):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        assert texts(answered(capsys, "--prefix", "runs/one")) == expected


def test_sampling(folder, capsys) -> None:
    asked = ["--prefix", "runs/one", "q", "--max-new-tokens", "12"]
    greedy = texts(answered(capsys, *asked))
    sampled = ["--temperature", "2.5", "--num", "3", "--seed", "7"]
    first, again = (texts(answered(capsys, *asked, *sampled)) for _ in range(2))
    assert first == again
    assert len(set(first)) == 3
    assert texts(answered(capsys, *asked, *sampled[:-1], "8")) != first
    assert texts(answered(capsys, *asked, "--temperature", "0")) == greedy
    assert texts(answered(capsys, *asked, "--top-p", "0.000001", "--num", "2")) == greedy * 2
    assert "3 greedy answers are all the same" in answered(capsys, *asked, "--num", "3", code=2)


def test_a_single_answer_streams_to_a_terminal(folder, capsys, monkeypatch) -> None:
    (expected,) = texts(answered(capsys, "--prefix", "runs/one", "q"))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    streamed: list[str] = []
    base = LOADED(common.model_for(None, "runs/one/prefix"), None, None, None, None)
    real = type(base).stream

    def stream(self: Any, *args: Any, **named: Any) -> Iterator[str]:
        for piece in real(self, *args, **named):
            streamed.append(piece)
            yield piece

    monkeypatch.setattr(type(base), "stream", stream)
    assert execute(["generate", "--prefix", "runs/one", "q", *FAST]) == 0
    assert streamed
    assert common.printable("".join(streamed), keep="\n\t").strip() == common.printable(expected, keep="\n\t").strip()
