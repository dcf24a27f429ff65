"""The rows of a sweep: validation rows for the measurements, training rows for attention mass and recovery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from foreword.base import Base
from foreword.config import CompressConfig
from foreword.data import Example, Reading
from foreword.data.order import HELD_OUT, held_out, permutation
from foreword.errors import ConfigError
from foreword.prefix import Prefix
from foreword.settings import about_data, build, to_dict
from foreword.tasks import LanguageModelling, TaskSettings


@dataclass(frozen=True)
class SweepRows:
    """task: the task of the rows. validation: the measured rows. training: other rows; empty if they aren't needed."""

    task: LanguageModelling
    validation: list[Example]
    training: list[Example]

    def for_mass(self, count: int, seed: int) -> list[Example]:
        """Return `count` random rows: training rows, or validation rows if there are none. seed: of the choice."""
        rows = self.training or self.validation
        return [rows[index] for index in permutation(len(rows), seed, 0)[:count]]


def recorded_settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of `CompressConfig` about data, as far as a prefix's record contains them."""
    config = record.get("config")
    names = about_data(CompressConfig)
    return {name: config[name] for name in names if name in config} if isinstance(config, Mapping) else {}


def with_recorded(config: CompressConfig, record: Mapping[str, Any]) -> CompressConfig:
    """Return `config` with the record's data settings, if `config` names no data. Settings that it changes are kept."""
    if config.data or config.validation is not None:
        return config
    default = build(CompressConfig, {})
    recorded = recorded_settings(record)
    used = {name: value for name, value in recorded.items() if getattr(config, name) == getattr(default, name)}
    return build(CompressConfig, to_dict(config) | used, "the prefix's record")


def load_rows(base: Base, prefix: Prefix, config: CompressConfig, *, needs_training: bool) -> SweepRows:
    """Read the rows of `config`. Raises `ConfigError` if no data are known, `DataError` if they can't be read."""
    if not config.data and config.validation is None:
        raise ConfigError("data", "the prefix's record names none; name training rows (data) and validation rows")
    if config.recover and not config.data:
        raise ConfigError("data", "recovery trains on training rows; name them")
    template = config.template or prefix.record.get("template")
    task = LanguageModelling(base, TaskSettings(template, config.input_field, config.target_field))
    most = config.max_tokens or base.max_positions - max(prefix.length, prefix.position_offset)
    reading = Reading(max_tokens=most, max_bad_rows=config.max_bad_rows)
    training: list[Example] = []
    if config.data and (needs_training or config.validation is None):
        training, _ = task.load(config.data, reading)
    if config.validation is not None:
        reading = replace(reading, limit=config.validation_rows, split="validation")
        measured, _ = task.load(config.validation, reading)
        return SweepRows(task, measured, training)
    chosen = _held_out(prefix, config, len(training))
    left_out = set(chosen)
    kept = [example for index, example in enumerate(training) if index not in left_out]
    return SweepRows(task, [training[index] for index in chosen[: config.validation_rows]], kept)


def _held_out(prefix: Prefix, config: CompressConfig, count: int) -> list[int]:
    """Return the rows to measure on. Of data that the prefix was trained on, they are the rows held out in training.

    Raises `ConfigError` if no rows can be held out.
    """
    trained = recorded_settings(prefix.record)
    same = bool(trained) and trained.get("data") == config.data
    if same and trained.get("validation") is not None:
        raise ConfigError("validation", f"the prefix was trained on every row of {config.data}; name other rows")
    settings = trained if same else {}
    most = settings.get("validation_rows", config.validation_rows) or HELD_OUT
    chosen = held_out(count, most, settings.get("seed", config.seed))
    if not chosen:
        raise ConfigError("validation", f"{count} rows are too few to hold some out; name a validation file")
    return chosen
