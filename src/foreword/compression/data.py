"""The rows of a sweep: validation rows for the measurements, training rows for attention mass and recovery."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foreword.base import Base
from foreword.config import CompressConfig
from foreword.data import Example, Reading
from foreword.data.examples import room
from foreword.data.order import HELD_OUT, held_out, permutation
from foreword.data.views import Chosen, without
from foreword.errors import ConfigError
from foreword.prefix import Prefix
from foreword.prefix.records import is_local_data, recorded_config, recorded_template, run_settings
from foreword.settings import about_data, build, to_dict
from foreword.tasks import LanguageModelling, settings_of
from foreword.training.rows import digest


@dataclass(frozen=True)
class SweepRows:
    """task: the task of the rows. validation: the measured rows. training: other rows; empty if they aren't needed."""

    task: LanguageModelling
    validation: Sequence[Example]
    training: Sequence[Example]

    def for_mass(self, count: int, seed: int) -> list[Example]:
        """Return `count` random rows: training rows, or validation rows if there are none. seed: of the choice."""
        rows = self.training or self.validation
        return [rows[index] for index in permutation(len(rows), seed, 0)[:count]]


def recorded_settings(record: Mapping[str, Any], folder: str | Path | None = None) -> dict[str, Any]:
    """Return the settings of `CompressConfig` about data, as far as a prefix's run or record contains them.

    folder: that of the saved prefix, or None. A run keeps the paths of its data in its own folder (`run_settings`);
    the record of a prefix has them only if an older version wrote it. Settings that this version doesn't know are
    ignored. Raises `ConfigError` for a setting with a wrong value.
    """
    config = (run_settings(folder, record) if folder else {}) or recorded_config(record)
    names = about_data(CompressConfig)
    recorded = {name: config[name] for name in names if name in config}
    build(CompressConfig, recorded, "the prefix's record")
    return recorded


def with_recorded(config: CompressConfig, record: Mapping[str, Any]) -> CompressConfig:
    """Return `config` with the recorded data settings, if `config` names no data. Settings that it changes are kept."""
    if config.data or config.validation is not None:
        return config
    default = build(CompressConfig, {})
    recorded = recorded_settings(record, config.prefix)
    used = {name: value for name, value in recorded.items() if getattr(config, name) == getattr(default, name)}
    return build(CompressConfig, to_dict(config) | used, "the prefix's record")


def load_rows(base: Base, prefix: Prefix, config: CompressConfig, *, needs_training: bool) -> SweepRows:
    """Read the rows of `config`. Raises `ConfigError` if no data are known, `DataError` if they can't be read."""
    if not config.data and config.validation is None:
        raise ConfigError(
            "data",
            "the prefix's record names none that can be opened, and the prefix lies in no run folder that does; "
            "name training rows (--data) and validation rows (--validation)",
        )
    if config.recover and not config.data:
        raise ConfigError("data", "recovery trains on training rows; name them")
    template = config.template or recorded_template(prefix.record)
    given = vars(config) | {"template": template, "task_options": {}}
    task = LanguageModelling(base, settings_of(given))
    most = config.max_tokens or room(base, max(prefix.length, prefix.position_offset))
    reading = Reading(max_tokens=most, max_bad_rows=config.max_bad_rows)
    training: Sequence[Example] = []
    if config.data and (needs_training or config.validation is None):
        _require_there("data", config.data, prefix, config)
        training, _ = task.load(config.data, reading)
    if config.validation is not None:
        _require_there("validation", config.validation, prefix, config)
        reading = replace(reading, limit=config.validation_rows, split="validation")
        measured, _ = task.load(config.validation, reading)
        return SweepRows(task, measured, training)
    chosen = _held_out(prefix, config, training)
    return SweepRows(task, Chosen(training, chosen[: config.validation_rows]), without(training, chosen))


def _held_out(prefix: Prefix, config: CompressConfig, items: Sequence[Example]) -> list[int]:
    """Return the rows to measure on. Of data that the prefix was trained on, they are the rows held out in training.

    These data are known by their path, or by the digest of their rows. Raises `ConfigError` if no rows can be held out.
    """
    trained = recorded_settings(prefix.record, config.prefix)
    same_path = bool(trained.get("data")) and Path(trained["data"]).absolute() == Path(config.data).absolute()
    trained_rows = _training_digest(prefix.record)
    if digest(items) == trained_rows or (same_path and trained.get("validation") is not None):
        raise ConfigError("validation", f"the prefix was trained on every row of {config.data}; name other rows")
    most = trained.get("validation_rows", config.validation_rows) or HELD_OUT
    chosen = held_out(len(items), most, trained.get("seed", config.seed))
    if not same_path and digest(without(items, chosen)) != trained_rows:
        chosen = held_out(len(items), config.validation_rows or HELD_OUT, config.seed)
    if not chosen:
        raise ConfigError("validation", f"{len(items)} row is too few to hold some out; name a validation file")
    return chosen


def _training_digest(record: Mapping[str, Any]) -> Any:
    """Return the digest of the rows that a prefix was trained on; None if the record has none."""
    data = record.get("data")
    training = data.get("training") if isinstance(data, Mapping) else None
    return training.get("digest") if isinstance(training, Mapping) else None


def _require_there(field: str, source: str, prefix: Prefix, config: CompressConfig) -> None:
    """Raise `ConfigError` for a recorded file or folder that is gone. `DataError` tells of one that was named."""
    recorded = recorded_settings(prefix.record, config.prefix).get(field)
    if source == recorded and is_local_data(source) and not os.path.exists(source):
        raise ConfigError(field, f"the prefix's run had {source}, which is not there now; name it with --{field}")
