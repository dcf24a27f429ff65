"""Accelerate: processes and trackers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foreword.base import Base
from foreword.config import TrainConfig
from foreword.errors import ConfigError
from foreword.extras import missing, require, require_all


def check_trackers(names: tuple[str, ...]) -> None:
    """Raise `ConfigError` for a tracker that is not known, `DependencyError` for one that is not installed."""
    if not names:
        return
    extra = "tensorboard" if "tensorboard" in names else "train"
    require_all(extra, ("accelerate",), f"for the tracker {names[0]}")
    tracking = require("accelerate.tracking", f"for the tracker {names[0]}")
    available = {str(tracker) for tracker in tracking.get_available_trackers()}
    for name in names:
        if name not in tracking.LOGGER_TYPE_TO_CLASS:
            known = ", ".join(tracking.LOGGER_TYPE_TO_CLASS)
            raise ConfigError("trackers", f"{name!r} is not known; choose from {known}")
        if name not in available:
            raise missing(name, "as a tracker")


@dataclass
class Alone:
    """What a run by one process without trackers needs of an Accelerator."""

    device: torch.device
    process_index: int = 0
    num_processes: int = 1
    trackers: tuple[Any, ...] = ()


def make_accelerator(base: Base, config: TrainConfig) -> Any:
    """An Accelerator for this run; under `accelerate launch` it joins the other processes.

    A single process without trackers needs none. Raises `DependencyError` if Accelerate is needed and missing.
    """
    if not config.trackers and os.environ.get("WORLD_SIZE", "1") in ("", "0", "1"):
        return Alone(base.device)
    accelerator = require("accelerate", "for several processes and trackers").Accelerator(cpu=base.device.type == "cpu")
    both_cpu = {accelerator.device.type, base.device.type} == {"cpu"}
    if accelerator.num_processes > 1 and accelerator.device != base.device and not both_cpu:
        raise ConfigError(
            "device",
            f"this process's device is {accelerator.device}, but the base is on {base.device}; leave device at auto",
        )
    return accelerator


def start_trackers(accelerator: Any, config: TrainConfig, folder: Path) -> None:
    """Open the run's trackers; they write into its folder."""
    if config.trackers:
        from accelerate.tracking import filter_trackers

        accelerator.project_configuration.set_directories(str(folder / "trackers"))
        accelerator.log_with = filter_trackers(list(config.trackers), accelerator.logging_dir)
        accelerator.init_trackers("foreword")
