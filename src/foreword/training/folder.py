"""The run folder: config.json, history.jsonl, loss.png, prefix/, checkpoints/, head/ but for language
modelling, and lora/ if one is trained. The run that is going on in it holds run.lock."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from foreword.config import TrainConfig
from foreword.errors import CheckpointError, ConfigError, RunInUseError
from foreword.extras import installed
from foreword.files import (
    Unreadable,
    append_line,
    free_name,
    parse_json,
    read_lines,
    recover,
    remove_folder,
    write_json,
    write_text,
    writing,
)
from foreword.folders import clear_inside
from foreword.settings import to_dict
from foreword.training.checkpoint import list_checkpoints, step_of


class RunFolder:
    """Where a run writes. history.jsonl has a row per update (`step`, `loss`, `learning_rate`,
    `tokens_per_second`: target tokens) and per validation (`step`, `validation_loss`); a step that was
    refused has `not_finite`, which names what was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.prefix = path / "prefix"
        self.head = path / "head"
        self.lora = path / "lora"
        self.history = path / "history.jsonl"
        self._lock = FileLock(path / LOCK)

    @classmethod
    def create(cls, config: TrainConfig) -> RunFolder:
        """A new folder with the resolved config in it, held by this run until `release`.

        Raises `ConfigError` if `output` is taken, `RunInUseError` if another run is going on in it.
        """
        folder = cls(_new_name(config) if config.output is None else Path(config.output))
        path = folder.path
        if path.exists() and not _unused(path):
            folder._require_free()
            raise _taken(path)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        folder.hold()
        try:
            if not _unused(path):  # another run came and went in between
                raise _taken(path)
            with writing(path):
                _clear(path)
            write_json(path / "config.json", to_dict(config))
        except BaseException:
            folder.release()
            raise
        return folder

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> RunFolder:
        """The run folder that `checkpoint` lies in."""
        if checkpoint.parent.name != "checkpoints":
            raise CheckpointError(f"{checkpoint} does not lie in a run folder's checkpoints/")
        return cls(checkpoint.parent.parent)

    def hold(self) -> None:
        """Keep other runs out of the folder until `release`, or until the process ends, however it ends.

        Raises `RunInUseError` if another run, in this process or another, is going on in it.
        """
        with writing(self.path / LOCK):
            try:
                self._lock.acquire(blocking=False)
            except Timeout as error:
                raise RunInUseError(
                    f"another run is going on in {self.path}; wait for it or stop it, or choose another output folder"
                ) from error

    def release(self) -> None:
        """Let other runs into the folder."""
        (self.path / LOCK).unlink(missing_ok=True)  # still held: who opened it meanwhile notices that it is gone
        self._lock.release()

    def _require_free(self) -> None:
        """Raise `RunInUseError` if another run is going on in the folder."""
        if (self.path / LOCK).is_file():
            self.hold()
            self.release()

    def append(self, row: dict[str, Any]) -> None:
        append_line(self.history, json.dumps(row, allow_nan=False))

    def rows(self) -> list[dict[str, Any]]:
        """The history so far; a last line cut off by a crash is left out. Raises `CheckpointError`."""
        if not os.path.lexists(self.history):
            return []
        rows: list[dict[str, Any]] = []
        try:
            for line in read_lines(self.history, _MOST_HISTORY):
                rows.append(_row(line))
        except Unreadable as error:
            raise CheckpointError(
                f"{self.history} is damaged: line {len(rows) + 1} {error}; mend or remove the line"
            ) from error
        return rows

    def mend(self, step: int, validated: int) -> None:
        """Before a run goes on after `step`: drop what it will write again, and what a crash left.

        That includes checkpoints of later steps, where an older one was chosen to go on from.
        """
        for path in list_checkpoints(self.checkpoints):
            if step_of(path) > step:
                remove_folder(path)
        kept = [row for row in self.rows() if row["step"] <= (validated if "validation_loss" in row else step)]
        write_text(self.history, "".join(json.dumps(row) + "\n" for row in kept))
        recover(self.prefix)
        recover(self.head)
        recover(self.lora)
        clear_inside(self.checkpoints)
        clear_inside(self.path)

    def plot(self) -> None:
        """Draw loss.png from the history, if matplotlib is installed."""
        if not installed("matplotlib"):
            return
        from matplotlib.figure import Figure

        rows = self.rows()
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for name, label, style in (("loss", "training", "-"), ("validation_loss", "validation", "o-")):
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label, alpha=0.6 if name == "loss" else 1.0)
        axes.set(xlabel="step", ylabel="loss (nats)", title=self.path.name)
        axes.legend()
        axes.grid(alpha=0.3)
        target = self.path / "loss.png"
        with writing(target):
            figure.savefig(target, dpi=120)


LOCK = "run.lock"
_MOST_HISTORY = 2**28  # bytes: some million steps
_OF_A_RUN = {"config.json", "history.jsonl", "trackers", "prefix", "head", "lora", "checkpoints", LOCK}


def _row(line: str) -> dict[str, Any]:
    """Return a row of the history. Raises `Unreadable` for anything else."""
    row = parse_json(line)
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        raise Unreadable("is no row with a step")
    if wrong := [name for name in ("loss", "validation_loss") if type(row.get(name, 0.0)) not in (int, float)]:
        raise Unreadable(f"has {row[wrong[0]]!r:.40} as {wrong[0]!r}")
    return row


def _unused(path: Path) -> bool:
    """Whether a run may start in `path`: empty, or left by a run that failed before its first checkpoint."""
    if not path.is_dir():
        return False
    names = {entry.name for entry in path.iterdir()}
    if names <= {LOCK}:
        return True
    unfinished = (".prefix.", ".head.", ".lora.", ".history.", ".config.")
    of_a_run = all(name in _OF_A_RUN or name.startswith(unfinished) for name in names)
    return of_a_run and "config.json" in names and not list_checkpoints(path / "checkpoints")


def _clear(path: Path) -> None:
    """Remove what a run left that failed before its first checkpoint."""
    for entry in path.iterdir():
        if entry.name == LOCK:
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _taken(path: Path) -> ConfigError:
    return ConfigError("output", f"{path} exists and is not empty; choose another folder, or resume with resume={path}")


def _new_name(config: TrainConfig) -> Path:
    """Make a folder under the first free name, so that no other run gets the same one. Raises `StorageError`."""
    stem = Path(config.data.partition(":")[0]).stem or "-".join(config.mixture) or "run"
    while True:
        path = free_name(Path("runs") / f"{stem}-{config.method}")
        with writing(path):
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            return path
