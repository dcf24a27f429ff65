"""A finished run's prefix goes into the store."""

from __future__ import annotations

from pathlib import Path

from foreword import status
from foreword.config import TrainConfig
from foreword.errors import ConfigError, ForewordError
from foreword.store import Store
from foreword.versions.names import check_name


def require_store(config: TrainConfig) -> None:
    """Raise `ConfigError` before a run whose prefix could not be stored at its end."""
    if config.store is None:
        return
    check_name(config.store)
    if config.train != "prefix":
        raise ConfigError("store", "a version holds a prefix alone, not the LoRA that this run trains too")
    Store()  # its address is one


def store_result(config: TrainConfig, run: Path) -> None:
    """Add the prefix and head of a finished run to the store, if the settings name a place in it."""
    if config.store is None:
        return
    try:
        version = Store().add(run, config.store)
    except ForewordError:
        status.note(f"the run is complete in {run}; foreword store add {run} {config.store} tries again")
        raise
    status.note(f"stored as {config.store}@{version.digest[:12]}")
