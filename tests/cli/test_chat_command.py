"""`foreword chat`: from a pipe, and in a real terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import foreword
from foreword.cli.main import execute
from tiny import byte_tokenizer, tiny_model, trained_like

READY = "\x1b[?2004h"  # prompt_toolkit waits for a line
FAST = ["--max-new-tokens", "6"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_model("llama").save_pretrained("model")
    byte_tokenizer(chat=True).save_pretrained("model")
    base = foreword.load("model", device="cpu")
    for seed, name in enumerate(("one", "two")):
        trained_like(base, 4, seed=seed).save(tmp_path / "runs" / name / "prefix")
    return tmp_path


def piped(monkeypatch: Any, capsys: Any, lines: str, *arguments: str) -> tuple[str, str]:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    capsys.readouterr()
    assert execute(["chat", "--model", "model", *FAST, *arguments]) == 0
    said = capsys.readouterr()
    return said.out, said.err


def test_each_line_of_a_pipe_is_a_turn(folder, monkeypatch, capsys) -> None:
    both = ["--prefix", "runs/one", "--prefix", "runs/two"]
    commands = "q1\n/prefix two\n\nq2\n/save talk.jsonl\n/wrong\n/exit\nnever\n"
    out, err = piped(monkeypatch, capsys, commands, *both)
    row = json.loads(Path("talk.jsonl").read_text())
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * 2
    assert [message["content"] for message in row["messages"][::2]] == ["q1", "q2"]
    assert row["messages"][1]["content"] in out
    assert "prefix: two" in err
    assert "error: /wrong: is no command; /help lists them" in err
    assert "\x1b" not in out + err


def test_an_encoder_talks_to_nobody(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model("bert").save_pretrained("model")
    byte_tokenizer().save_pretrained("model")
    assert execute(["chat", "--model", "model"]) == 2
    assert "is an encoder and generates nothing" in capsys.readouterr().err


class Terminal:
    """`foreword chat` in a pseudo terminal."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()  # it answers no cursor requests, so prompt_toolkit says so
        command = [sys.executable, "-m", "foreword", "chat", "--model", "model", *arguments]
        environment = os.environ | {"TERM": "xterm", "FOREWORD_CACHE": str(Path("cache").absolute())}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self.seen = ""

    def wait_for(self, text: str, seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} did not come: {self.seen[-400:]!r}"
            if select.select([self.master], [], [], 1)[0]:
                try:
                    self.seen += os.read(self.master, 65536).decode("utf-8", "replace")
                except OSError:  # the other end is closed
                    assert text in self.seen, self.seen[-400:]

    def send(self, text: str) -> None:
        self.seen = ""
        os.write(self.master, text.encode())

    def end(self) -> int:
        try:
            return self.process.wait(30)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
            os.close(self.master)


def test_in_a_terminal(folder) -> None:
    pytest.importorskip("prompt_toolkit")
    terminal = Terminal("--prefix", "runs/one", "--prefix", "runs/two", "--max-new-tokens", "5")
    terminal.wait_for("prefix one; /help lists commands")
    terminal.wait_for(READY)
    for line, told in (
        ("hello\r", ""), ("/prefix two\r", "prefix: two"), ("/save talk.jsonl\r", "saved as a row of talk.jsonl"),
        ("\x03", "Ctrl-D or /exit leaves"),
    ):  # fmt: skip
        terminal.send(line)
        terminal.wait_for(told)
        terminal.wait_for(READY)
    terminal.send("\x04")
    assert terminal.end() == 0
    assert json.loads(Path("talk.jsonl").read_text())["messages"][0] == {"role": "user", "content": "hello"}
    assert "hello" in Path("cache/chat-history").read_text()
