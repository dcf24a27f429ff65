"""Every hostile file and value is a typed error, soon, and before anything large is made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from hostile_cases import GROUPS

MOST_SECONDS = 10.0  # each is to take less than one, on a quiet machine
MOST_BYTES = 100_000_000
CASES = [(group, name) for group, cases in GROUPS.items() for name in cases]
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of memory")


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Any:
    """What came of each case of a group, which is run once, in a process of its own."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    root = tmp_path_factory.getbasetemp() if run is None else tmp_path_factory.getbasetemp().parent
    known: dict[str, Any] = {}

    def of_group(group: str) -> Any:
        if group not in known:
            folder = root / f"hostile-{run}-{group}"
            with FileLock(f"{folder}.lock"):
                if not folder.exists():
                    run_group(group, folder)
            known[group] = json.loads((folder / "results.json").read_text())
        return known[group]

    return of_group


def run_group(group: str, folder: Path) -> None:
    worker = Path(__file__).with_name("worker.py")
    done = subprocess.run(
        [sys.executable, str(worker), group, str(folder)], capture_output=True, text=True, timeout=400, input="y\n" * 99
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(("group", "name"), CASES, ids=[f"{group}: {name}" for group, name in CASES])
def test_a_typed_error_and_nothing_large(results, group, name) -> None:
    found = results(group)[name]
    assert found["error"] is not None, "nothing was refused"
    assert found["error"]["typed"], found
    assert found["seconds"] < MOST_SECONDS, found
    assert found["growth"] < MOST_BYTES, found


@pytest.mark.parametrize("group", GROUPS)
def test_control_what_is_honest_passes(results, group) -> None:
    assert results(group)["honest"]["error"] is None
    assert results(group)["honest again"]["error"] is None
