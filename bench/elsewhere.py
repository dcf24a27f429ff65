"""The other end of `adapters_worker.py`: Adapter-hub's prefix tuning as a contender; it needs an older Transformers."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

import foreword
from contenders import features
from foreword.data import Example

NAME = "adapters prefix"
WORKER = Path(__file__).with_name("adapters_worker.py")


class Elsewhere:
    """A contender in a process of its own, within `with`. Calling it makes one update; `clock` is that process's CPU
    seconds.

    python: an interpreter that has `adapters`. Raises `RuntimeError` where the worker ends before it answers.
    """

    def __init__(self, base: foreword.Base, python: str, length: int) -> None:
        self.megabytes = 0.0
        with tempfile.TemporaryDirectory() as folder:
            base.model.save_pretrained(folder)
            command = [python, str(WORKER), folder, str(length)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            while self._line() != "ready\n":  # the library greets on stdout, too
                pass
        self._used = psutil.Process(self._process.pid)

    def __call__(self, examples: Sequence[Example]) -> None:
        print(json.dumps([features(row) for row in examples]), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._line())
        self.megabytes = float(answer["megabytes"])

    def clock(self) -> float:
        times = self._used.cpu_times()
        return float(times.user + times.system)

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)  # closes its input, which ends it

    def _line(self) -> str:
        if line := (self._process.stdout.readline() if self._process.stdout else ""):
            return line
        raise RuntimeError(f"{WORKER.name} ended with {self._process.wait(60)}; its reason stands above")
