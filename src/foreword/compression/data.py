"""The rows of a sweep: those that are measured, and those that attention mass and recovery are taken from."""

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
    """task: what is asked. validation: the measured rows. training: others, empty if nothing needs them."""

    task: LanguageModelling
    validation: list[Example]
    training: list[Example]

    def for_mass(self, count: int, seed: int) -> list[Example]:
        """`count` rows drawn by `seed`, of the training rows where there are any."""
        rows = self.training or self.validation
        return [rows[index] for index in permutation(len(rows), seed, 0)[:count]]


def recorded_settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `CompressConfig` that a prefix's own record knows: where its data are and how they are read."""
    config = record.get("config")
    known = about_data(CompressConfig)
    return {name: config[name] for name in known if name in config} if isinstance(config, Mapping) else {}


def with_recorded(config: CompressConfig, record: Mapping[str, Any]) -> CompressConfig:
    """`config` with the record's data settings if it says nothing of data; what it says of them otherwise is kept."""
    if config.data or config.validation is not None:
        return config
    default = build(CompressConfig, {})
    known = recorded_settings(record)
    left = {name: value for name, value in known.items() if getattr(config, name) == getattr(default, name)}
    return build(CompressConfig, to_dict(config) | left, "the prefix's record")


def load_rows(base: Base, prefix: Prefix, config: CompressConfig, *, needs_training: bool) -> SweepRows:
    """Read the rows of `config`. Raises `ConfigError` if no data are known, `DataError` for what can't be read."""
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
    """Rows of the data to measure on: of those that the prefix was trained on, just the ones held out then."""
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
