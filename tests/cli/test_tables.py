"""Tables fit 80 columns without a broken word; `show` says how to use a prefix and never where its files were."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreword.cli.main import execute
from tiny import byte_tokenizer, tiny_model

WIDTH = 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("secret-place")
    before = Path.cwd()
    os.chdir(made)
    tiny_model("llama").save_pretrained("model")
    byte_tokenizer(chat=True).save_pretrained("model")
    rows = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(30)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = ["train", "--data", str(made / "rows.jsonl"), "--model", str(made / "model"), "--length", "3"]
    assert execute([*train, "--steps", "2", "--output", "run", "--lr", "0.25"]) == 0
    yield made
    os.chdir(before)


@pytest.fixture(autouse=True)
def narrow(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))


def said(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert execute(list(arguments)) == 0
    out: str = capsys.readouterr().out
    return out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["slots", "smollm2-135m"], ["decoder.0–29", "×30", "368,640", "flash", "head_dim", "parameters"]),
        (["slots", "smollm2-135m", "-v"], ["decoder.29", "model.layers.29.self_attn", "flash", "window"]),
        (["show", "run"], ["decoder.0–2", "rows.jsonl,", "0.25", "prompt/completion,", "key/value", "./model"]),
        (["methods"], ["conditioned", "1,105,920", "0.0687", "parameters", "saves"]),
        (["eval", "--data", "rows.jsonl", "--prefix", "run/prefix", "--max-new-tokens", "2"], ["exact_match", "loss"]),
    ],
)
def test_no_word_is_broken_at_80_columns(folder, capsys, command, words) -> None:
    text = said(capsys, *command)
    assert "…" not in text
    for word in words:
        assert re.search(rf"(?<!\S){re.escape(word)}(?!\S)", text), (word, text)
    commands = ("use it:", "direct,", "bleu:", "chrf:")  # what is pasted is not wrapped
    assert all(len(line.rstrip()) <= WIDTH for line in text.splitlines() if not line.startswith(commands)), text


def test_equal_layers_are_one_line_and_each_is_shown_on_demand(folder, capsys) -> None:
    short, long = said(capsys, "slots", "smollm2-135m"), said(capsys, "slots", "smollm2-135m", "-v")
    assert short.count("decoder.") == 1
    assert long.count("decoder.") == 30


def test_layers_that_differ_are_told_apart(tmp_path, capsys) -> None:
    tiny_model("gemma2").save_pretrained(tmp_path / "model")
    text = said(capsys, "slots", str(tmp_path / "model"))
    assert [line.split()[0] for line in text.splitlines() if line.strip().startswith("decoder.")] == [
        "decoder.0", "decoder.1", "decoder.2",
    ]  # fmt: skip


def test_show_takes_a_run_and_says_how_to_use_it(folder, capsys) -> None:
    text = said(capsys, "show", "run")
    assert "use it: foreword generate --prefix run/prefix 'your input'" in text
    assert re.search(r"learning rate +0\.25", text)
    assert re.search(r"training data +rows\.jsonl, 27 rows", text)
    assert re.search(r"validation loss +\d+\.\d{4} → \d+\.\d{4} after step \d", text)
    assert re.search(r"saved +20\d\d-\d\d-\d\d \d\d:\d\d UTC", text)
    assert "secret-place" not in text
    assert said(capsys, "show", "run/prefix").split("\n")[1:-2] == text.split("\n")[1:-2]
    assert "secret-place" not in said(capsys, "show", "run", "--json")


@pytest.mark.parametrize(
    "command",
    [
        ["eval", "--data", "rows.jsonl", "--metrics", "loss", "--prefix"],
        ["export", "--output", "out", "--to", "transformers"],
        ["compress", "--rows", "2", "--no-bleu", "--choices", "int8"],
        ["generate", "q", "--max-new-tokens", "2", "--prefix"],
        ["show"],
    ],
)
def test_a_run_stands_for_its_prefix_everywhere(folder, capsys, command) -> None:
    assert said(capsys, *command, "run")


def test_data_that_are_not_there_are_told_before_the_base_is_loaded(folder, capsys, monkeypatch) -> None:
    monkeypatch.setattr("foreword.cli.common.load_base", lambda *_: pytest.fail("loaded"))
    for arguments, problem in (
        (["train", "--model", "model"], "data: name a file of rows: --data FILE"),
        (["train", "--model", "model", "--data", "nothing.jsonl"], "nothing.jsonl: no such file or folder"),
        (["train", "--model", "model", "--data", "rows.jsonl", "--validation", "v.csv"], "v.csv: no such file"),
        (["train", "--model", "model", "--data", "*.csv"], "*.csv: no file matches"),
    ):
        assert execute(arguments) in (1, 2)
        assert problem in capsys.readouterr().err
