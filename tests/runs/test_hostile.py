"""Whatever settings, histories and records hold: every run is listed, compared and drawn, and nothing is raised."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foreword.cli.main import execute
from foreword.config import TrainConfig
from foreword.runs import compare, find
from foreword.runs.page import page
from foreword.settings import defaults
from page_helpers import ALLOWED, Reader
from run_helpers import add_prefix, make_run

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
CONFIGS = st.dictionaries(st.sampled_from(list(defaults(TrainConfig))) | st.text(max_size=8), VALUES, max_size=12)
ROWS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("step", "loss", "validation_loss", "not_finite", "tokens_per_second", "f1"), VALUES)
)
GOOD = st.builds(
    lambda step, loss: {"step": step, "validation_loss": loss, "loss": loss, "tokens_per_second": loss},
    st.integers(0, 10**11), st.floats(-1e299, 1e299),
)  # fmt: skip
LINES = st.lists((ROWS | GOOD).map(lambda row: json.dumps(row).encode()) | st.binary(max_size=20), max_size=8)


@given(config=CONFIGS, record=CONFIGS, lines=LINES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything(tmp_path, capsys, config, record, lines) -> None:
    place = tmp_path / "runs"
    shutil.rmtree(place, ignore_errors=True)
    first, other = make_run(place / "first"), make_run(place / "other")
    (first / "config.json").write_text(json.dumps(config | {"method": config.get("method", "direct")}))
    (first / "history.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    add_prefix(first, **record)
    assert {run.name for run in find(place, sort="loss")} == {"first", "other"}
    read = Reader(page(compare(first, other)))
    assert read.whole
    assert read.tags <= ALLOWED
    assert not [value for _, value in read.attributes if value and ("nan" in value or "inf " in value)]
    for arguments in ([str(place)], ["compare", str(first), str(other)]):
        assert execute(["runs", *arguments]) == 0
        assert not set("\x1b\x00\x9b") & set(capsys.readouterr().out)
        assert execute(["runs", *arguments, "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["runs"]) == 2


def special(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["pipe", "loop", "device", "folder"])
@pytest.mark.parametrize("name", ["config.json", "history.jsonl", "run.lock", "prefix", "prefix/manifest.json"])
def test_files_that_are_none(tmp_path, name, kind) -> None:
    run = make_run(tmp_path / "run")
    if "/" in name:
        add_prefix(run)
    special(run / name, kind)
    found: Any = find(tmp_path)
    assert [entry.name for entry in found] == ["run"]
    assert bool(found[0].problems) == (name in ("config.json", "history.jsonl"))
    other = make_run(tmp_path / "other")
    assert Reader(page(compare(run, other))).whole
