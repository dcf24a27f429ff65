"""Accelerate: processes and trackers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foreword.base import Base
from foreword.config import TrainConfig
from foreword.errors import ConfigError


def check_trackers(names: tuple[str, ...]) -> None:
    """Raise `ConfigError` for a tracker that is not known or not installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError("trackers", f"{name!r} is not known; choose from {', '.join(LOGGER_TYPE_TO_CLASS)}")
        if name not in available:
            raise ConfigError("trackers", f"{name!r} is not installed: pip install {name}")


def make_accelerator(base: Base, config: TrainConfig) -> Any:
    """An Accelerator for this run; under `accelerate launch` it joins the other processes."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=base.device.type == "cpu")
    both_cpu = {accelerator.device.type, base.device.type} == {"cpu"}
    if accelerator.num_processes > 1 and accelerator.device != base.device and not both_cpu:
        raise ConfigError(
            "device",
            f"this process's device is {accelerator.device}, but the base is on {base.device}; leave device at auto",
        )
    return accelerator


def start_trackers(accelerator: Any, config: TrainConfig, folder: Path) -> None:
    """Open the run's trackers; they write into its folder."""
    from accelerate.tracking import filter_trackers

    if config.trackers:
        accelerator.project_configuration.set_directories(str(folder / "trackers"))
        accelerator.log_with = filter_trackers(list(config.trackers), accelerator.logging_dir)
        accelerator.init_trackers("foreword")
