"""Mutations of valid files: only Foreword's own errors, and little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "count", [10_000, pytest.param(1_000_000, marks=pytest.mark.slow)], ids=["ten thousand", "a million"]
)
def test_only_typed_errors(tmp_path, count) -> None:
    worker = Path(__file__).parent / "fuzz_worker.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(worker), str(tmp_path), str(count), os.environ.get("FUZZ_SEED", "0")],
        capture_output=True, text=True, timeout=count, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{told}")
    assert told["untyped"] == []
    assert sum(told["outcomes"].values()) == count
    assert told["outcomes"]["PrefixFormatError"] > count / 2
    assert told["growth"] < 64 * 2**20
