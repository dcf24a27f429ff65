"""A run that goes on must be the same run: the same settings, rows and weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from foreword.config import TrainConfig
from foreword.errors import CheckpointError
from foreword.settings import free_on_resume, to_dict, worked_out

DATE = "date"  # among a run's inputs: the day that its chat template prints


def with_saved_settings(config: TrainConfig, checkpoint: Path, recorded: dict[str, Any]) -> TrainConfig:
    """`config` with what it leaves open taken from the run it resumes. Raises `CheckpointError` naming the
    first setting in which it would differ."""
    saved = to_dict(TrainConfig()) | recorded  # settings that are newer than the run were at their defaults
    if saved["validate_every"] is None:  # older versions didn't record what it came to
        saved["validate_every"] = max(1, int(saved["steps"] or 1) // 10)
    left_open: dict[str, Any] = {
        name: saved.get(name) for name in worked_out(TrainConfig) if getattr(config, name) is None
    }
    config = dataclasses.replace(config, **left_open)
    for name, value in to_dict(config).items():
        if name not in free_on_resume(TrainConfig) and value != saved.get(name):
            raise CheckpointError(
                f"{checkpoint} was made with {name} {saved.get(name)!r}, not {value!r}; resume with the same settings"
            )
    return config


def rendering_date(saved: Mapping[str, Any] | None) -> str:
    """Return the day whose date chat templates print: that of the run that is resumed, else today.

    Raises `CheckpointError` if the checkpoint holds something else.
    """
    date = (saved or {}).get(DATE) or datetime.now().date().isoformat()
    try:
        return datetime.fromisoformat(str(date)).date().isoformat()
    except ValueError as error:
        raise CheckpointError(f"the checkpoint names {date!r:.40} as the date of its rows, which is none") from error


def require_inputs(inputs: dict[str, str], checkpoint: Path | None, saved: dict[str, Any]) -> None:
    """Raise `CheckpointError` if the rows or the base's weights are not those of the run."""
    for name, value in inputs.items():
        if name != DATE and saved.get(name) != value:
            raise CheckpointError(f"{checkpoint} was made with other {name}; resume with the same, or start a new run")
