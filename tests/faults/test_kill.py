"""kill -9 while saving: the newest complete checkpoint always loads, and the prefix is always whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from foreword.files import new_folder, recover

SCRIPT = Path(__file__).parent / "kill_while_saving.py"


@pytest.mark.parametrize("rounds", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_while_saving(tmp_path, rounds) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(rounds), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    print(f"\n{report}")
    assert report["rounds"] == rounds
    assert report["left"] > rounds // 4, "hardly any kill left something, so this proves little"
    assert report["still"] == 0
    assert report["newest_step"] > rounds // 2, "hardly anything was saved, so this proves little"


def test_without_an_atomic_exchange_a_crash_between_two_renames_is_mended(tmp_path, monkeypatch) -> None:
    """Where the system can't swap two names in one step."""
    from foreword import folders

    target = tmp_path / "prefix"
    for text in ("old", "new"):
        with new_folder(target) as folder:
            (folder / "file").write_text(text)
    monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    with new_folder(target) as folder:
        (folder / "file").write_text("newer")
    assert (target / "file").read_text() == "newer"

    aside = tmp_path / ".prefix.old-x"
    aside.mkdir()
    target.replace(aside / "prefix")  # what a kill between the two renames leaves
    (tmp_path / ".prefix.new-y").mkdir()
    recover(target)
    assert (target / "file").read_text() == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["prefix"]
