"""Wrong usage is one line, -h works, what other libraries say stays away, and the hub is not waited for."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest

import foreword
from foreword import reaching
from foreword.base.loading import load_config
from foreword.cli.main import app, execute
from foreword.data.readers import read_rows
from foreword.errors import DataError, ModelError
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

    monkeypatch.setattr("foreword.base.hub.answers", lambda address: False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    began = time.monotonic()
    with pytest.raises(DataError, match=r"the hub can't be reached .* download it where there is a network"):
        list(read_rows("some/dataset"))
    assert time.monotonic() - began < 20  # it was half a minute of retries
    assert not constants.HF_HUB_OFFLINE, "as before"
    assert not datasets.config.HF_HUB_OFFLINE


@pytest.fixture
def dropping(monkeypatch):
    """A hub behind a firewall that drops what is sent to it: a socket whose queue of connections is full."""
    from huggingface_hub import constants

    for name in reaching._PROXIES:
        monkeypatch.delenv(name, raising=False)
    waiting = [socket.socket() for _ in range(4)]
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield
        for client in waiting:
            client.close()


def test_a_model_of_a_hub_that_is_out_of_reach_is_not_waited_for(dropping) -> None:
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"the hub can't be reached.* download it where there is a network"):
        foreword.load("some/model")
    with pytest.raises(ModelError, match=r"some/model has no readable configuration: .* give the folder"):
        load_config("some/model")
    assert time.monotonic() - began < 20  # it was minutes of retries


def test_a_cached_model_loads_where_the_hub_is_out_of_reach(dropping, tmp_path, monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    copy = tmp_path / "models--some--model"
    (copy / "refs").mkdir(parents=True)
    (copy / "refs" / "main").write_text("0" * 40)
    tiny_model("llama").save_pretrained(copy / "snapshots" / ("0" * 40))
    assert foreword.load("some/model").model.config.model_type == "llama"


def test_a_name_that_is_looked_up_for_long_counts_as_out_of_reach(monkeypatch) -> None:
    def slow(address: str) -> bool:
        time.sleep(1)
        return True

    monkeypatch.setattr(reaching, "_connects", slow)
    monkeypatch.setattr(reaching, "PATIENCE", 0.01)
    assert not reaching.answers("https://example.org")
