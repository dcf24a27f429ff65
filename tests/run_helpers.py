"""Run folders made without training: as a run leaves them, and as damage does."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import foreword
from foreword.settings import to_dict


def make_run(
    folder: Path, validations: Iterable[tuple[int, float]] = ((0, 3.0), (10, 2.0)), done: int = 10, **settings: Any
) -> Path:
    """A run folder of `done` updates with these validation losses, without tensors. settings: of its config.json."""
    config = to_dict(foreword.TrainConfig(data="train.jsonl", steps=10, lr=0.05)) | settings
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    rows: list[dict[str, Any]] = [
        {"step": step, "loss": 4.0 - step / done, "learning_rate": 0.05, "tokens_per_second": 100.0}
        for step in range(1, done + 1)
    ]
    for step, loss in validations:
        rows.append({"step": step, "validation_loss": loss})
    rows.sort(key=lambda row: (row["step"], "validation_loss" in row))
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def add_prefix(run: Path, **record: Any) -> None:
    """A manifest with this record, as far as runs are read."""
    (run / "prefix").mkdir()
    (run / "prefix" / "manifest.json").write_text(json.dumps({"format": "foreword-prefix", "record": record}))
