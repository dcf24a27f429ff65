"""Wrong usage is one line, -h works, what other libraries say stays away, and the hub is not waited for."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from foreword.cli.main import app, execute
from foreword.data.readers import read_rows
from foreword.errors import DataError
from tiny import byte_tokenizer, tiny_model

VERBS = sorted(str(command.name) for command in app.registered_commands)


@pytest.mark.parametrize("verb", VERBS)
def test_short_help(verb, capsys) -> None:
    assert execute([verb, "-h"]) == 0
    short = capsys.readouterr().out
    assert execute([verb, "--help"]) == 0
    assert short == capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["train", "--lenght", "3"],
            "error: No such option: --lenght (Possible options: --events, --length, --lengths)",
        ),
        (["nonsense"], "error: No such command 'nonsense'"),
        (["generate", "--batch-size", "x"], "error: Invalid value for '--batch-size': "),
        (["show"], "error: Missing argument"),
    ],
)
def test_wrong_usage_is_one_line(arguments, line, capsys) -> None:
    assert execute(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(line)
    assert said.rstrip().endswith(" -h")


def test_nothing_of_other_libraries_reaches_a_user_of_the_library(tmp_path) -> None:
    """Loading, training and generating, in a process of its own; Foreword's own lines may be there."""
    tiny_model("llama").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text('{"input": "a", "target": "b"}\n' * 20)
    code = (
        "import foreword\n"
        "base = foreword.load('model')\n"
        "config = foreword.TrainConfig(data='rows.jsonl', length=2, steps=2, lr=0.1, output='run')\n"
        "result = foreword.train(base, config)\n"
        "base.generate(['x', 'longer'], result.prefix, max_new_tokens=2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if line and not line.startswith("foreword: ")] == []


def test_a_hub_that_is_out_of_reach_is_not_waited_for(tmp_path, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    from huggingface_hub import constants

    monkeypatch.setattr("foreword.data.hub._answers", lambda address: False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    began = time.monotonic()
    with pytest.raises(DataError, match=r"the hub can't be reached .* download it where there is a network"):
        list(read_rows("some/dataset"))
    assert time.monotonic() - began < 20  # it was half a minute of retries
    assert not constants.HF_HUB_OFFLINE, "as before"
    assert not datasets.config.HF_HUB_OFFLINE
