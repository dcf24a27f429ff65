"""`foreword run-llamacpp` in a process of its own, and in this one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import foreword
from engine_helpers import call, llama_server
from foreword.export import BaseFiles
from foreword.llamacpp.run import Plan, serve
from tiny import tiny_base, trained_like
from tiny_gguf import write_gguf

PROMPTS = ["abc", "what", "Tell me.", "x y z", "Hello, you!"]


def fill(folder: Path) -> None:
    """Put a tiny base into a folder, as Transformers' files and as GGUF, and two prefixes of it.

    Bytes beyond letters make no text, and llama-server refuses to tell what is no text: so only letters are answered.
    """
    base = tiny_base("llama")
    base.model.lm_head.weight.data[94:] = 0  # the first 94 tokens are the printable characters of ASCII
    base.model.save_pretrained(folder / "model")
    base.tokenizer.save_pretrained(folder / "model")
    write_gguf(base.model, folder / "model.gguf")
    loaded = foreword.load(folder / "model", device="cpu")
    for seed, name in enumerate(("one", "two"), start=1):
        prefix = trained_like(loaded, 5 + seed, seed).with_record("direct", {"template": "Q: {input}\nA:"})
        prefix.save(folder / name)


def answers(place: Path) -> dict[str, list[str]]:
    """What Foreword itself answers, by the name of the prefix."""
    base = foreword.load(place / "model", device="cpu")
    answers = {
        name: base.generate(PROMPTS, foreword.Prefix.load(place / name), max_new_tokens=12) for name in ("one", "two")
    }
    texts = [f"Q: {prompt}\nA:" for prompt in PROMPTS]
    return answers | {"base": base.generate(texts, template="{input}", max_new_tokens=12)}


@contextmanager
def running(place: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command in a process of its own, and its port."""
    program = llama_server()
    line = [sys.executable, "-m", "foreword", "run-llamacpp", "--model-file", "model.gguf", "--model", "model"]
    line += ["--prefix", "one", "--prefix", "two", "--cache-type", "f32", "--ctx-size", "64", "--no-flash-attention"]
    line += ["--server", program.line[0], "--server-options", "--threads 1", *more]
    with (place / "err.txt").open("w") as errors:
        process = subprocess.Popen(line, cwd=place, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), (place / "err.txt").read_text()
        yield process, int(address.rpartition(":")[2])
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def asked(port: int, model: str, prompt: str, **more: Any) -> Any:
    text = prompt if model != "base" else f"Q: {prompt}\nA:"
    status, answer = call(port, "/v1/completions", {"model": model, "prompt": text, "max_tokens": 12} | more)
    assert status == 200, answer
    return answer


def plan(place: Path, **more: Any) -> Plan:
    given: dict[str, Any] = {"command": llama_server(), "model_file": place / "model.gguf", "room": 64, "flash": False}
    return Plan(**given | {"cache_type": "f32", "slots": 1, "options": ("--threads", "1")} | more)


class Ready(Exception):
    """Ends `serve`."""


def served(place: Path, then: Any, **more: Any) -> None:
    """Serve the prefix `one` in this process, call `then` with the port, and stop."""

    def ready(address: str) -> None:
        then(int(address.rpartition(":")[2]))
        raise Ready

    prefixes = {"one": foreword.Prefix.load(place / "one")}
    with pytest.raises(Ready):
        serve(plan(place, **more), prefixes, BaseFiles(str(place / "model")), ready)
