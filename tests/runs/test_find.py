"""Runs are found below a folder, whatever else lies there, and chosen by what they are."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import foreword
from foreword import status
from foreword.errors import ConfigError
from foreword.runs import found as finding
from foreword.runs.found import find, moment, search
from run_helpers import make_run
from status_helpers import Heard


def names(folder: Path, *args, **kwargs) -> list[str]:
    return [run.name for run in find(folder, *args, **kwargs)]


def aged(run: Path, days: float) -> Path:
    then = (datetime.now(UTC) - timedelta(days=days)).timestamp()
    for file in run.iterdir():
        os.utime(file, (then, then))
    return run


@pytest.fixture
def three(tmp_path) -> Path:
    aged(make_run(tmp_path / "e2e-10", model="org/base", validations=[(0, 3.0), (10, 1.0)]), 1)
    aged(make_run(tmp_path / "e2e-2", model="/models/llama", method="mlp", lr=0.5), 10)
    aged(make_run(tmp_path / "sub" / "other", data="/data/E2E/valid.jsonl", validations=[], done=3), 3)
    return tmp_path


def test_the_public_name(three) -> None:
    assert [run.name for run in foreword.runs.find(three)] == ["e2e-10", "other", "e2e-2"]


def test_orders(three) -> None:
    assert names(three, sort="loss") == ["e2e-10", "e2e-2", "other"], "one without a loss is last"
    assert names(three, sort="name") == ["e2e-2", "e2e-10", "other"], "numbers count as numbers"
    with pytest.raises(ConfigError, match="sort: must be time, loss or name"):
        names(three, sort="size")


def test_choices(three) -> None:
    assert names(three, method="MLP") == names(three, "mlp") == names(three, "lr=0.5") == ["e2e-2"]
    assert names(three, base="LLAMA") == ["e2e-2"]
    assert names(three, data="e2e") == ["other"], "a part of the path of its data"
    assert names(three, "broken off") == ["other"]
    assert names(three, "e2e org/base") == ["e2e-10"], "all words must be there"
    assert names(three, "learning") == []
    assert names(three, since="5d") == names(three, since=datetime.now() - timedelta(days=5)) == ["e2e-10", "other"]
    assert names(three, "slots") == [], "settings at their defaults don't count"


def test_times() -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assert moment("2026-01-31") == datetime(2026, 1, 31, tzinfo=UTC)
    assert moment(" 2026-01-31 14:00 ").hour == 14
    assert moment("2026-01-31T14:00+02:00") == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert (moment("12h", now), moment("2w", now)) == (now - timedelta(hours=12), now - timedelta(days=14))
    assert moment("999999w", now).year == 1
    for wrong in ("", "yesterday", "2026-13-01", "7", "-3d", "9999999d"):
        with pytest.raises(ConfigError, match="since: must be a date"):
            moment(wrong)


def test_foreign_folders_and_leftovers_are_no_runs(tmp_path) -> None:
    make_run(tmp_path / "run")
    make_run(tmp_path / "run" / "within")
    make_run(tmp_path / ".hidden")
    make_run(tmp_path / "a" / "b" / "c" / "deep")
    make_run(tmp_path / "a" / "b" / "c" / "d" / "too deep")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama", "length": 3}')
    (tmp_path / "a" / "notes.txt").write_text("x")
    assert sorted(names(tmp_path)) == ["deep", "run"]
    assert names(tmp_path / "run") == ["run"], "a folder may be a run itself"


def test_links_are_followed_once(tmp_path) -> None:
    make_run(tmp_path / "scratch" / "run")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "there").symlink_to(tmp_path / "scratch", target_is_directory=True)
    (tmp_path / "runs" / "again").symlink_to(tmp_path / "scratch" / "run", target_is_directory=True)
    (tmp_path / "runs" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "runs" / "self").symlink_to(tmp_path / "runs" / "self")
    (tmp_path / "runs" / "gone").symlink_to(tmp_path / "nowhere")
    found = search([tmp_path / "runs"])
    assert [run.name for run in found.runs] == ["again"]
    assert found.notes == []


def test_what_cannot_be_looked_at_is_noted(three, monkeypatch) -> None:
    real = os.scandir

    def scandir(path):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    heard = Heard()
    with status.listening(heard):
        assert names(three) == ["e2e-10", "e2e-2"]
    assert heard.notes == [f"{three / 'sub'} can't be looked at: Permission denied"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_rights_that_are_missing(three) -> None:
    (three / "sub").chmod(0)
    (three / "e2e-2" / "config.json").chmod(0)
    found = search([three])
    assert {run.name: run.state for run in found.runs} == {"e2e-10": "finished", "e2e-2": "damaged"}
    assert len(found.notes) == 1


def test_a_search_has_an_end(three, monkeypatch) -> None:
    monkeypatch.setattr(finding, "MOST_ENTRIES", 4)
    found = search([three])
    assert len(found.runs) < 3
    assert found.notes == ["more than 4 files and folders; the rest is left out: name a smaller folder"]


def test_a_folder_that_is_not_there(tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "nowhere", tmp_path / "file", "\0", "x" * 5000):
        with pytest.raises(ConfigError, match=r"folder: .* is not there, or is no folder"):
            find(path)
    assert find(tmp_path) == []
