"""Saved folders of bad will: each gets a typed error, soon, and before anything large is allocated."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import saved_folders
from saved_folders import CASES


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return saved_folders.save_good(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize("case", CASES)
def test_it_gets_a_typed_error(good, tmp_path, case) -> None:
    """The issue's limit is a second; here it is ten, for machines that are busy."""
    kind = saved_folders.make(case, good, tmp_path / "it")
    began = time.monotonic()
    said = saved_folders.refusal(kind, tmp_path / "it")
    assert time.monotonic() - began < 10
    assert said != "loaded"
    assert len(said) < 1500
    assert said.isprintable()


def test_the_good_ones_are_loaded(good) -> None:
    """Else their copies would prove nothing."""
    for kind in ("prefix", "head", "checkpoint", "history"):
        assert saved_folders.refusal(kind, good / kind) == "loaded"


def test_none_of_them_takes_much_memory(tmp_path) -> None:
    """All of them in one process: its peak grows by less than 100 MB."""
    done = subprocess.run(
        [sys.executable, str(Path(saved_folders.__file__)), str(tmp_path)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{report}")
    assert report["cases"] == len(CASES)
    assert report["kilobytes"] < 100_000
