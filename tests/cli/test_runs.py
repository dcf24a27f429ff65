"""`foreword runs`: the list, the search and the comparison on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from foreword.cli import runs as command
from foreword.cli.main import execute
from foreword.cli.plot import SEVERAL, TALL, overlay
from run_helpers import make_run


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    return tmp_path


def said(capsys, *arguments: str, code: int = 0) -> tuple[str, str]:
    assert execute(["runs", *arguments]) == code
    printed = capsys.readouterr()
    return printed.out, printed.err


def test_what_train_writes_is_listed_compared_and_found(place, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    for lr in ("0.01", "0.02"):
        assert execute(["train", "run.yaml", "--lr", lr]) == 0
    capsys.readouterr()
    out, err = said(capsys)
    assert err == ""
    assert [line.split()[0] for line in out.splitlines() if "finished" in line] == [
        "runs/train-direct-2", "runs/train-direct-1",
    ]  # fmt: skip
    assert "2 runs; each: base model, task lm, data train.jsonl, method direct, length 3" in out
    (row,) = json.loads(said(capsys, "find", "lr=0.02", "--json")[0])["runs"]
    assert (row["path"], row["state"], row["step"]) == ("runs/train-direct-2", "finished", 2)
    out, _ = said(capsys, "compare", "runs/train-direct-1", "runs/train-direct-2", "--html", "x.html")
    assert [line.split() for line in out.splitlines() if line.strip().startswith("lr ")] == [["lr", "0.01", "0.02"]]
    assert "validation loss by step" in out
    assert (place / "x.html").read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in place.iterdir() if path.name.startswith((".", "x"))) == ["x.html"]


def test_the_forms(here, capsys) -> None:
    make_run(here / "runs" / "a")
    make_run(here / "other" / "b")
    make_run(here / "compare" / "c")
    assert "runs/a" in said(capsys)[0]
    assert "other/b" in said(capsys, "other")[0]
    assert "other/b" in said(capsys, "list", "other", "runs")[0]
    assert "runs/a" in said(capsys, "--sort", "loss")[0]
    assert "./compare/c" in said(capsys, "./compare")[0].replace(" compare/c", "./compare/c")
    assert "other/b" in said(capsys, "find", "b", "--in", "other")[0]
    for verb in ([], ["list"], ["find"], ["compare"]):
        short, long = said(capsys, *verb, "-h"), said(capsys, *verb, "--help")
        assert short == long
        assert short[0].startswith(" ".join(["Usage: foreword runs", *verb]))


def test_no_runs_is_nothing_wrong(here, capsys) -> None:
    assert said(capsys) == ("no runs in runs/\n", "")
    (here / "runs").mkdir()
    assert said(capsys)[0] == "no runs in runs/\n"
    make_run(here / "runs" / "a")
    assert said(capsys, "find", "nothing")[0] == "none of 1 runs in runs/ is meant\n"
    assert json.loads(said(capsys, "find", "nothing", "--json")[0]) == {"runs": [], "notes": []}


def test_damaged_runs_are_listed_with_the_reason(here, capsys) -> None:
    for number in range(15):
        make_run(here / "runs" / f"r{number}")
        (here / "runs" / f"r{number}" / "config.json").write_text("{\x1b[31m" if number else "[]")
    out, err = said(capsys)
    assert out.count("damaged") == 15
    assert err.count("\n") == command.TOLD + 1
    assert "note: and 5 more; --json has all of them" in err
    assert "\x1b" not in out + err
    rows = json.loads(said(capsys, "--json")[0])["runs"]
    assert all(row["problems"][0].startswith("config.json") for row in rows)


def test_hostile_names_and_settings_do_not_steer_the_terminal(here, capsys) -> None:
    odd = "x\x1b]0;title\x07\n[bold]"
    runs = []
    for number in range(2):
        changes: dict[str, Any] = {"model": odd, "template": f"{odd}{number}", odd: number}
        runs.append(make_run(here / "runs" / f"{odd}\udcff{number}", **changes))
    for arguments in ([], ["--json"], ["compare", *map(str, runs)], ["compare", *map(str, runs), "--json"]):
        out, err = said(capsys, *arguments)
        assert not set("\x1b\x07\udcff") & set(out + err)
        assert "[bold]" in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "error: folder: nowhere is not there, or is no folder"),
        (["--sort", "size"], "error: sort: must be time, loss or name, not 'size'"),
        (["--since", "soon"], "error: since: must be a date such as 2026-01-31"),
        (["--nonsense"], "error: No such option: --nonsense"),
        (["find"], "error: Missing argument 'words"),
        (["compare"], "error: Missing argument 'RUN"),
        (["compare", "runs/a"], "error: runs: two to 12 are compared, not 1"),
        (["compare", "runs/a", "runs/nowhere"], "error: run: runs/nowhere can't be read: No such file"),
        (["compare", "runs/a", "runs"], "error: run: runs is no run folder"),
        (["compare", "runs/a", "runs/b", "--html", "runs/a/config.json"], "error: --html: 'runs/a/config.json' must"),
        (["list", "x" * 5000], "error: folder: "),
    ],
)
def test_wrong_usage_is_one_line(here, capsys, arguments, line) -> None:
    make_run(here / "runs" / "a")
    make_run(here / "runs" / "b")
    _, err = said(capsys, *arguments, code=2)
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_usage_names_the_whole_command(here, capsys) -> None:
    assert said(capsys, "compare", code=2)[1].endswith("; see foreword runs compare -h\n")
    assert said(capsys, "--nonsense", code=2)[1].endswith("; see foreword runs list -h\n")
    assert execute(["train", "--nonsense"]) == 2
    assert capsys.readouterr().err.endswith("; see foreword train -h\n")


def test_a_page_that_cannot_be_written(here, capsys) -> None:
    runs = [str(make_run(here / "runs" / name)) for name in "ab"]
    (here / "folder.html").mkdir()
    for target in ("folder.html", "nowhere/x.html"):
        _, err = said(capsys, "compare", *runs, "--html", target, code=1)
        assert err.startswith(f"error: {target} can't be written")
    assert sorted(path.name for path in here.iterdir()) == ["folder.html", "runs"]


def test_a_thousand_runs_are_listed_quickly_and_without_torch(tmp_path) -> None:
    for number in range(1000):
        make_run(tmp_path / "runs" / f"group{number % 10}" / f"run-{number}", lr=number / 1000)
    long = tmp_path / "runs" / "long" / "history.jsonl"
    make_run(long.parent)
    row = '{"step": %d, "loss": 1.5, "learning_rate": 0.01, "tokens_per_second": 1000.0}\n'
    with long.open("w") as file:
        for step in range(1, 200_001):
            file.write(row % step)
            if step % 20_000 == 0:
                file.write(f'{{"step": {step}, "validation_loss": {300_000 - step}}}\n')
    code = (
        "import sys, json, io, contextlib\n"
        "from foreword.cli.main import execute\n"
        "for line in (['runs', '--json'], ['runs'], ['runs', 'compare', 'runs/long', 'runs/group1/run-1', '--html',"
        " 'x.html']):\n"
        "    assert execute(line) == 0\n"
        "    print('@@')\n"
        "heavy = {'torch', 'transformers', 'numpy', 'safetensors.torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    began = os.times()
    started = time.monotonic()
    paths = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths, "COLUMNS": "140"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    ended = os.times()
    assert done.returncode == 0, done.stderr
    listed, table, _, _ = done.stdout.split("@@\n")
    rows = json.loads(listed)["runs"]
    assert len(rows) == 1001
    (found,) = [entry for entry in rows if entry["name"] == "long"]
    assert (found["step"], found["best_loss"], found["best_step"]) == (200_000, 100_000, 200_000)
    assert table.count("finished") == 1001
    used = ended.children_user + ended.children_system - began.children_user - began.children_system
    print(f"{used:.1f} processor seconds, {time.monotonic() - started:.1f} s")
    assert used < 30, "two lists of a thousand runs, and a comparison"


def test_several_curves_are_told_apart() -> None:
    falling = [(step, 10.0 - step) for step in range(11)]
    rising = [(step, float(step)) for step in range(11)]
    *lines, steps = overlay([("A", falling), ("B", rising)], 80)
    assert len(lines) == TALL
    assert max(map(len, lines)) <= 80
    assert (lines[0][9], lines[-1][9]) == ("A", "B")
    assert (lines[0].rstrip()[-1], lines[-1].rstrip()[-1]) == ("B", "A")
    assert any(SEVERAL in line for line in lines), "where they cross"
    assert steps.split() == ["step", "0", "10"]
    same = overlay([("A", falling), ("B", falling[:6])], 80)
    assert any("B" in line for line in same), "a curve on another one has its letter at its end"
    assert overlay([("A", [(0, 1.0)]), ("B", [])], 80) == []
    assert overlay([("A", falling)], 20) == []
