"""`foreword doctor`."""

from __future__ import annotations

import json
import subprocess
import sys

from foreword.cli.main import execute


def test_doctor(capsys, monkeypatch) -> None:
    from foreword.doctor import checks

    assert execute(["doctor"]) == 0
    printed = capsys.readouterr().out
    for said in (
        "torch ",
        "transformers ",
        "flash-cpu",
        "foreword cache",
        "ok     parity",
        "ok     ten training steps",
        "everything works",
    ):
        assert said in printed
    assert execute(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [check["passed"] for check in report["checks"]] == [True] * 4

    def broken(base):
        raise RuntimeError("the kernel is gone")

    monkeypatch.setattr(checks, "_mixed_rows", broken)
    assert execute(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED rows with different prefixes: RuntimeError: the kernel is gone" in printed
    assert "ok     save and load" in printed
    assert "1 of the checks failed" in printed


def test_doctor_reports_what_can_not_even_start(capsys, monkeypatch) -> None:
    from foreword.doctor import checks, report

    def broken(*_):
        raise RuntimeError("tokenizers broken")

    monkeypatch.setattr(checks, "_byte_tokenizer", broken)
    monkeypatch.setattr(report, "_kernels", broken)
    assert execute(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [check["passed"] for check in found["checks"]] == [False] * 4
    assert found["kernels"] == {"unknown": "RuntimeError: tokenizers broken"}


def test_doctor_sees_a_wrong_merge(capsys, monkeypatch) -> None:
    """The parity check can fail: here the prefix gets half its weight."""
    from foreword.attention import merge
    from foreword.attention.backends import Part

    right = merge.merge

    def wrong(local, prefix):
        return right(local, Part(prefix.output, prefix.lse - 0.7))

    monkeypatch.setattr(merge, "merge", wrong)
    assert execute(["doctor"]) == 1
    assert "FAILED parity with past_key_values: logits off by" in capsys.readouterr().out


def test_doctor_prints_nothing_of_other_libraries() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "foreword", "doctor"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if not line.startswith(("checking ", "loading PyTorch"))] == []
