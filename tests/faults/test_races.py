"""Readers that race a writer find one prefix, head or checkpoint or the other: never an error, never a mixture."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "race.py"


@pytest.mark.parametrize("reads", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_readers_that_race_a_writer(tmp_path, reads) -> None:
    writer = subprocess.Popen([sys.executable, str(SCRIPT), "write", str(tmp_path)])
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "step-000007").exists():
            assert writer.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        done = subprocess.run(
            [sys.executable, str(SCRIPT), "read", str(tmp_path), str(reads)],
            capture_output=True, text=True, timeout=1200, check=False,
        )  # fmt: skip
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    print(f"\n{report}")
    assert report["errors"] == {}
    assert report["found"].get("8", 0) > reads // 10, "the writer hardly wrote, so this proves little"
    assert report["found"].get("9", 0) > reads // 10
