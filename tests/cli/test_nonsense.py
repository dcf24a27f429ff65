"""Every verb with nonsense in each place: exit code 1 or 2 and an error line, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from foreword.cli import common
from foreword.cli.main import execute
from tiny import byte_tokenizer, tiny_model

PLACES = [
    "", "folder", "empty", "text.txt", "run", "run/prefix", "loop", "nowhere", "nowhere.jsonl", "ü😀", "x" * 5000, "-1",
    "\udcff", "/", "..",
]  # fmt: skip
NUMBERS = ["-1", "0", "99999999999999999999", "nan", "inf", "x", ""]
PREFIX = "run/prefix"
FEW = ("--choices", "int8", "--no-bleu")
# A command for each place of a name; {} is the nonsense. Each fails for every entry of PLACES but those named.
# A folder of other files, or of other folders, is read by Datasets, which may take long to find nothing.
OTHER_FOLDERS = {"/", ".."}
WITH_NAME: list[tuple[list[str], set[str]]] = [
    (["show", "{}"], {PREFIX, "run"}),
    (["export", "{}", "--output", "out"], {PREFIX, "run"}),
    (["export", PREFIX, "--output", "{}"], {"nowhere", "nowhere.jsonl", "ü😀", "-1", "\udcff"}),
    (["export", PREFIX, "--to", "{}", "--output", "out"], set()),
    (["generate", "x", "--prefix", "{}"], {PREFIX, "run"}),
    (["generate", "x", "--model", "{}"], set()),
    (["generate", "x", "--model", "model", "--lora", "{}"], set()),
    (["generate", "x", "--model", "model", "--dtype", "{}"], {""}),
    (["generate", "x", "--model", "model", "--device", "{}"], {""}),
    (["generate", "--model", "model", "--file", "{}"], {"text.txt"}),
    (["generate", "x", "--model", "model", "--template", "{}"], {""}),
    (["eval", "--model", "model", "--metrics", "loss", "--data", "{}"], OTHER_FOLDERS),
    (["eval", "--data", "train.jsonl", "--metrics", "loss", "--model", "{}"], set()),
    (["eval", "--data", "train.jsonl", "--metrics", "loss", "--prefix", "{}"], {PREFIX, "run"}),
    (["eval", "--data", "train.jsonl", "--metrics", "loss", "--prefix", PREFIX, "--head", "{}"], {""}),
    (["eval", "--data", "train.jsonl", "--model", "model", "--metrics", "{}"], {""}),
    (["eval", "--data", "train.jsonl", "--model", "model", "--task", "{}"], set()),
    (["eval", "--data", "train.jsonl", "--model", "model", "--metrics", "loss", "--task-option", "{}"], set()),
    (["compress", "{}", *FEW], {PREFIX, "run"}),
    (["compress", PREFIX, "--choices", "{}"], {""}),
    (["compress", PREFIX, *FEW, "--data", "{}"], OTHER_FOLDERS | {""}),
    (["compress", PREFIX, *FEW, "--validation", "{}"], OTHER_FOLDERS),
    (["compress", PREFIX, *FEW, "--model", "{}"], set()),
    (["compress", PREFIX, *FEW, "--keep-loss", "{}"], set()),
    (["train", "{}"], set()),
    (["train", "run.yaml", "--data", "{}"], OTHER_FOLDERS),
    (["train", "run.yaml", "--validation", "{}"], OTHER_FOLDERS),
    (["train", "run.yaml", "--model", "{}"], set()),
    (["train", "run.yaml", "--resume", "{}"], {"", "run"}),
    (["train", "run.yaml", "--method", "{}"], set()),
    (["train", "run.yaml", "--objective", "{}"], set()),
    (["train", "run.yaml", "--option", "{}"], set()),
    (["train", "run.yaml", "--lengths", "{}"], set()),
    (["train", "run.yaml", "--slots", "{}"], set()),
    (["train", "run.yaml", "--task", "{}"], set()),
    (["train", "run.yaml", "--init", "{}"], set()),
    (["train", "run.yaml", "--set", "{}"], set()),
    (["train", "run.yaml", "--set", "{}=1"], set()),
    (["train", "run.yaml", "--trackers", "{}"], {""}),
    (["train", "run.yaml", "--lora", "{}"], set()),
    (["demo", "--model", "{}"], set()),
    (["slots", "{}"], set()),
    (["methods", "{}"], {""}),
    (["methods", "--config", "{}"], {""}),
    (["doctor", "{}"], set()),
    (["runs", "list", "{}"], {"folder", "run", "run/prefix", "/", ".."}),
    (["runs", "--since", "{}"], set()),
    (["runs", "--sort", "{}"], set()),
    (["runs", "find", "x", "--in", "{}"], {"folder", "run", "run/prefix", "/", ".."}),
    (["runs", "compare", "run", "{}"], set()),
    (["runs", "compare", "run", "nowhere", "--html", "{}"], set()),
    (["{}"], set()),
]
# The same for numbers. Some numbers are right in some places, so that only what is printed is looked at.
WITH_NUMBER = [
    ["slots", "model", "--length", "{}"],
    ["methods", "model", "--length", "{}"],
    ["generate", "x", "--model", "model", "--max-new-tokens", "2", "--batch-size", "{}"],
    ["eval", "--data", "train.jsonl", "--model", "model", "--metrics", "loss", "--batch-size", "{}"],
    ["eval", "--data", "train.jsonl", "--model", "model", "--metrics", "loss", "--rows", "{}"],
    ["eval", "--data", "train.jsonl", "--model", "model", "--metrics", "loss", "--max-tokens", "{}"],
    ["compress", PREFIX, *FEW, "--rows", "{}"],
    ["compress", PREFIX, *FEW, "--max-kb", "{}", "--output", "small"],
    ["compress", PREFIX, *FEW, "--keep-loss", "{}", "--output", "small"],
    ["compress", PREFIX, "--no-bleu", "--choices", "svd-{}"],
    ["compress", PREFIX, "--no-bleu", "--choices", "drop-to-1/{}"],
    ["demo", "--steps", "{}", "--model", "nowhere/nowhere/nowhere"],
    *(
        ["train", "run.yaml", "--set", f"{name}={{}}", "--output", "new"]
        for name in ("length", "batch_size", "lr", "epochs", "warmup", "clip", "dropout", "accumulation", "patience",
                     "max_bad_rows", "max_tokens", "validation_rows", "frozen_tokens", "validate_every", "head_lr")
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def nonsense(tmp_path_factory) -> Iterator[Path]:
    """A model, data, a run, and what is none of them, in the current folder."""
    folder = tmp_path_factory.mktemp("nonsense")
    before = Path.cwd()
    os.chdir(folder)
    tiny_model("llama").save_pretrained("model")
    byte_tokenizer().save_pretrained("model")
    rows = [{"input": f"q{i}", "target": "yes" if i % 2 else "no"} for i in range(20)]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("run.yaml").write_text("model: model\ndata: train.jsonl\nlength: 3\nsteps: 1\ntrackers: []\nlr: 0.01\n")
    assert execute(["train", "run.yaml", "--output", "run"]) == 0
    Path("folder").mkdir()
    Path("empty").touch()
    Path("text.txt").write_text("some text\n")
    Path("loop").symlink_to("loop")
    yield folder
    os.chdir(before)


LOADED = cache(common.load_base)  # for all commands together


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch) -> None:
    monkeypatch.setattr(common, "load_base", LOADED)


def require_told(arguments: list[str], captured: Any, code: int) -> None:
    assert code in (1, 2), arguments
    assert "rror: " in captured.err
    assert "Traceback" not in captured.err + captured.out
    assert "unexpected " not in captured.err.replace("unexpected extra argument", ""), arguments


@pytest.mark.parametrize(("command", "right"), WITH_NAME, ids=[" ".join(command) for command, _ in WITH_NAME])
def test_names(nonsense, capsys, command, right) -> None:
    for place in PLACES:
        arguments = [part.replace("{}", place) for part in command]
        if place in right:
            continue
        if arguments[:2] == ["train", "run.yaml"]:
            arguments += ["--output", "new"]
        capsys.readouterr()
        code = execute(arguments)
        require_told(arguments, capsys.readouterr(), code)


@pytest.mark.parametrize("command", WITH_NUMBER, ids=" ".join)
def test_numbers(nonsense, capsys, command) -> None:
    for number in NUMBERS:
        arguments = [part.replace("{}", number) for part in command]
        capsys.readouterr()
        if (code := execute(arguments)) != 0:
            require_told(arguments, capsys.readouterr(), code)
        for left in ("new", "small"):
            shutil.rmtree(nonsense / left, ignore_errors=True)


@pytest.mark.parametrize("answers", ["folder", "", "nowhere/a.txt", "x" * 300, "empty/a.txt"])
def test_answers_need_a_file(nonsense, capsys, answers) -> None:
    arguments = ["eval", "--data", "train.jsonl", "--model", "model", "--rows", "1", "--metrics", "bleu"]
    arguments += ["--max-new-tokens", "1", "--answers", answers]
    capsys.readouterr()
    code = execute(arguments)
    require_told(arguments, capsys.readouterr(), code)


def test_a_pipe_in_place_of_a_file_of_inputs(nonsense, capsys) -> None:
    if not Path("pipe").exists():
        os.mkfifo("pipe")
    assert execute(["generate", "--model", "model", "--file", "pipe"]) == 2
    assert "--file: pipe is not a regular file; what is no file can be given on stdin" in capsys.readouterr().err
