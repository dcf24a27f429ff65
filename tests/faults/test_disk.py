"""A full disk at each write: a clear error, the previous checkpoint whole, no debris, and the run goes on later."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import foreword
from foreword import files, folders
from foreword.errors import StorageError
from foreword.prefix import stored
from foreword.training import checkpoint
from foreword.training.checkpoint import list_checkpoints, read_state
from foreword.training.folder import RunFolder
from tiny import tiny_base
from training_helpers import debris, equal, final_state, history_of, settings, tensors, untimed, write_rows

CHANGES: dict[str, Any] = {"steps": 4, "validate_every": 2, "checkpoint_every": 2, "keep_checkpoints": 1, "lr": 0.5}


class FullDisk:
    """Every operation that writes counts down; the one at zero finds the disk full, and all later ones too."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.left, self.failures = room, 0
        for holder, name in (
            (checkpoint, "save_file"),
            (stored, "save_file"),
            (folders, "fsync"),
            (files, "fsync"),
            (os, "mkdir"),
            (os, "fsync"),
        ):
            monkeypatch.setattr(holder, name, self._counted(getattr(holder, name)))
        really = os.open
        monkeypatch.setattr(os, "open", lambda path, flags, *a, **k: self._created(really, path, flags, *a, **k))
        real = Path.open
        monkeypatch.setattr(Path, "open", lambda path, *a, **k: self._open(real, path, *a, **k))

    def _counted(self, real):
        def operation(*arguments, **more):
            self._use()
            return real(*arguments, **more)

        return operation

    def _open(self, real, path, mode="r", *arguments, **more):
        if "a" in mode:
            self._use()
        return real(path, mode, *arguments, **more)

    def _created(self, real, path, flags, *arguments, **more):
        if flags & os.O_CREAT:
            self._use()
        return real(path, flags, *arguments, **more)

    def _use(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.failures += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_disk_full_at_each_write(tmp_path) -> None:
    base, rows = tiny_base(), write_rows(tmp_path)
    whole = foreword.train(base, settings(rows, "whole", **CHANGES))
    base.fingerprint  # noqa: B018 - its cache is written once, before
    room, slowest = 0, 0.0
    while True:
        run = rows / f"run{room}"
        with pytest.MonkeyPatch.context() as patched:
            disk, began = FullDisk(patched, room), time.monotonic()
            error = _train_until_full(base, settings(rows, run.name, **CHANGES))
            seconds = time.monotonic() - began
        if error is None:
            break
        assert "No space left on device" in str(error)
        assert str(run) in str(error)
        assert seconds < 5
        slowest = max(slowest, seconds)
        assert disk.failures
        assert not run.exists() or debris(run) == []
        found = list_checkpoints(run / "checkpoints")
        for path in found:
            read_state(path)  # checks the digest
        if found:
            resumed = foreword.train(base, settings(rows, resume=str(run), **CHANGES))
            assert equal(final_state(run), final_state(whole.run))
            assert equal(tensors(resumed.prefix), tensors(whole.prefix))
            assert history_of(run) == untimed(whole.history)
        elif run.exists():  # before the first checkpoint it can be begun again in the same place
            again = foreword.train(base, settings(rows, run.name, **CHANGES))
            assert equal(tensors(again.prefix), tensors(whole.prefix))
            assert history_of(run) == untimed(whole.history)
        room += 1
    assert room > 60, f"only {room} writes were seen"
    print(f"\nfull at each of {room} writes; the error came after at most {slowest:.2f} s")


def _train_until_full(base, config) -> StorageError | None:
    try:
        foreword.train(base, config)
    except StorageError as error:
        return error
    return None


@pytest.mark.parametrize("kilobytes", [4, 12, 40, 120])
def test_a_disk_that_is_really_full(tmp_path, kilobytes) -> None:
    """A small file system of its own, in a subprocess, with as much room as said."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        rows = write_rows(tmp_path)
        code = (
            "import sys, json, time; sys.path.insert(0, sys.argv[1])\n"
            "import foreword; from pathlib import Path\n"
            "from tiny import tiny_base\nfrom training_helpers import settings\n"
            "rows = Path(sys.argv[2]); base = tiny_base(); began = time.monotonic()\n"
            "try:\n    foreword.train(base, settings(rows, 'disk/run', steps=40, checkpoint_every=1))\n"
            "except foreword.ForewordError as error:\n"
            "    print(json.dumps([type(error).__name__, str(error), time.monotonic() - began]))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent.parent), str(rows)],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        kind, message, _ = json.loads(done.stdout)
        assert kind == "StorageError"
        assert "No space left" in message or "os error 28" in message
        assert debris(disk) == []
        for path in list_checkpoints(disk / "run" / "checkpoints"):
            read_state(path)
        if (disk / "run" / "history.jsonl").exists():
            RunFolder(disk / "run").rows()  # every line of it is whole
        if kilobytes == 120:
            assert list_checkpoints(disk / "run" / "checkpoints")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _append_until_full(file: Path) -> None:
    for number in range(1000):
        files.append_line(file, json.dumps({"step": number, "filler": "x" * 97}))


def test_a_line_that_does_not_fit_leaves_nothing(tmp_path) -> None:
    """Appending until a small file system is full: whole lines only."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        file = disk / "history.jsonl"
        with pytest.raises(StorageError, match="No space left"):
            _append_until_full(file)
        lines = file.read_text().split("\n")
        assert [json.loads(line)["step"] for line in lines[:-1]] == list(range(len(lines) - 1))
        assert lines[-1] == ""
        assert len(lines) > 30
    finally:
        subprocess.run(["umount", str(disk)], check=True)
