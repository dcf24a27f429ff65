"""Settings: one frozen dataclass per verb, read from TOML, YAML or JSON, checked once, saved with the result."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from foreword.errors import ConfigError

DEFAULT_MODEL = "smollm2-135m"
Config = TypeVar("Config")


@dataclass(frozen=True)
class DataConfig:
    """What training and evaluation share about data.

    model: hub id, folder, GGUF file or bundled name. data: JSONL, CSV, TSV, Parquet, a Datasets folder,
    or a Datasets id with an optional split after a colon (`org/name:train`).
    template: the whole prompt with {field} in it; None: the tokenizer's chat template if there is one,
    else the bare input. max_bad_rows: above this many bad rows the run stops before it starts.
    quantise: frozen weights in fewer bits; lora: folder of a PEFT adapter on the base (see `foreword.load`).
    max_tokens: longest row (prompt and target); None: what the model's positions allow.
    """

    data: str = ""
    model: str = DEFAULT_MODEL
    template: str | None = None
    input_field: str = "input"
    target_field: str = "target"
    max_bad_rows: int = 0
    max_tokens: int | None = None
    batch_size: int = 16
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantise: Literal["int8", "bnb-8bit", "bnb-4bit"] | None = None
    lora: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        check_types(self)
        _at_least(self, 0, "max_bad_rows")
        _at_least(self, 1, "batch_size", "max_tokens")


@dataclass(frozen=True)
class TrainConfig(DataConfig):
    """One training run.

    validation: held-out rows; None: up to 96 rows, at most a tenth, are taken from the data.
    validation_rows: how many of its first rows are used; None: all.
    method, length, options: the parameterisation, virtual tokens, and the method's own settings.
    init: text, vocab, random or prefix. init_text: the text (or the words for vocab; None: the first
    training rows). init_prefix: the folder of the prefix to go on from.
    steps: optimizer steps; None: as many as `epochs` over the data.
    batch_size: rows per optimizer step; accumulation: the parts each batch is computed in.
    lr: peak learning rate; None: the method's own default. warmup: steps of linear warm-up. decay to
    `final_lr` × lr by `scheduler`. clip: largest gradient norm. patience: validations without
    improvement before stopping; None: never. validate_every, checkpoint_every: in steps; None: a
    tenth of the run. keep_checkpoints: newest ones kept.
    shard_base: under `accelerate launch`, spread the frozen weights over the processes (FSDP2).
    train: what learns, where the base carries a LoRA: the prefix, the LoRA (the prefix stays as it
    starts), or both. lora_lr: the LoRA's peak learning rate.
    prefix_dtype: how the finished prefix is stored.
    output: run folder; None: a new numbered one in runs/. resume: a run folder or checkpoint to go on from.
    """

    validation: str | None = None
    validation_rows: int | None = 96
    method: str = "direct"
    length: int = 32
    options: Mapping[str, Any] = field(default_factory=dict)
    init: Literal["text", "vocab", "random", "prefix"] = "text"
    init_text: str | None = None
    init_prefix: str | None = None
    steps: int | None = None
    epochs: float = 3.0
    accumulation: int = 1
    lr: float | None = None
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup: int = 10
    final_lr: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0
    mixed_precision: Literal["no", "bf16"] = "no"
    activation_checkpointing: bool = False
    shard_base: bool = False
    train: Literal["prefix", "lora", "both"] = "prefix"
    lora_lr: float = 2e-4
    patience: int | None = None
    validate_every: int | None = None
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    prefix_dtype: Literal["float32", "bfloat16", "float16"] = "float16"
    trackers: tuple[str, ...] = ("tensorboard",)
    output: str | None = None
    resume: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 0, "warmup", "final_lr", "weight_decay", "seed")
        _at_least(self, 1, "length", "steps", "accumulation", "validation_rows", "patience")
        _at_least(self, 1, "validate_every", "checkpoint_every", "keep_checkpoints")
        for name in ("epochs", "lr", "lora_lr", "clip"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(name, f"must be above 0, not {value}")
        if self.accumulation > self.batch_size:
            raise ConfigError("accumulation", f"{self.accumulation} parts don't fit a batch of {self.batch_size} rows")
        if self.init == "prefix" and self.init_prefix is None:
            raise ConfigError("init_prefix", "init 'prefix' needs the folder of a saved prefix")
        if self.init in ("random", "prefix") and self.init_text is not None:
            raise ConfigError("init_text", f"has no meaning with init {self.init!r}")


TEXT_METRICS = ("bleu", "chrf", "rouge_l", "exact_match")
METRICS = ("loss", "perplexity", *TEXT_METRICS)


@dataclass(frozen=True)
class EvalConfig(DataConfig):
    """One evaluation. prefix: a saved prefix's folder; None: the plain base. rows: only the first so many."""

    prefix: str | None = None
    metrics: tuple[str, ...] = METRICS
    max_new_tokens: int = 64
    rows: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 1, "max_new_tokens", "rows")
        for metric in self.metrics:
            if metric not in METRICS:
                raise ConfigError("metrics", f"{metric!r} is not known; choose from {', '.join(METRICS)}")
        if not self.metrics:
            raise ConfigError("metrics", "name at least one")


@dataclass(frozen=True)
class CompressConfig(DataConfig):
    """One sweep of `foreword.compress` over ways to make a trained prefix smaller.

    prefix: a saved prefix's folder. data: training rows, for attention mass and recovery. validation: the rows that
    are measured; None: those that training held out of the data. validation_rows: how many of its first; None: all.
    If neither is named, all settings of data that are left at their defaults are those of the prefix's record.
    seed: order of rows, and which are held out of data that the prefix wasn't trained on.
    choices: names as `foreword.compression.choices` knows them; empty: the default ones for the prefix.
    recover: steps of recovery training for each choice, 0 for none; lr: their peak learning rate.
    mass_rows: training rows on which attention mass is measured. bleu: measure it; needs generation.
    keep_loss: pick the smallest whose validation loss is at most this share above the uncompressed one's (0.01 is 1 %).
    max_kb: pick the lowest validation loss of at most so many KB of 1,000 bytes.
    output: folder for what is picked; None: the prefix's with "-compressed" behind its name.
    """

    prefix: str = ""
    validation: str | None = None
    validation_rows: int | None = 96
    seed: int = 0
    choices: tuple[str, ...] = ()
    recover: int = 0
    lr: float = 3e-2
    mass_rows: int = 64
    bleu: bool = True
    max_new_tokens: int = 64
    keep_loss: float | None = None
    max_kb: float | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 0, "seed", "recover", "keep_loss")
        _at_least(self, 1, "validation_rows", "mass_rows", "max_new_tokens")
        for name in ("lr", "max_kb", "keep_loss"):
            if (value := getattr(self, name)) is not None and not 0 <= value < math.inf:
                raise ConfigError(name, f"must be a finite number of 0 or more, not {value}")
        if self.keep_loss is not None and self.max_kb is not None:
            raise ConfigError("max_kb", "give keep_loss or max_kb, not both: only one of them can pick")
        if self.output is not None and self.keep_loss is None and self.max_kb is None:
            raise ConfigError("output", "nothing is picked without keep_loss or max_kb, so there is nothing to write")


def read_settings(path: str | Path) -> dict[str, Any]:
    """The mapping in a .toml, .yaml, .yml or .json file. Raises `ConfigError` naming file and line."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(file), f"can't be read: {error}") from error
    value = _parse(file, text)
    if not isinstance(value, dict):
        raise ConfigError(str(file), "must hold a mapping of settings")
    return value


def _parse(file: Path, text: str) -> Any:
    import yaml

    try:
        if file.suffix == ".toml":
            return tomllib.loads(text)
        if file.suffix in (".yaml", ".yml"):
            return yaml.safe_load(text)
        if file.suffix == ".json":
            return json.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise ConfigError(str(file), " ".join(str(error).split())) from error
    raise ConfigError(str(file), "must end in .toml, .yaml, .yml or .json")


def build(kind: type[Config], values: Mapping[str, Any], origin: str = "settings") -> Config:
    """Make a config from plain values. Unknown names raise `ConfigError` with the nearest known one."""
    known = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(known)})"
            raise ConfigError(f"{origin}: {name}", f"is not a setting{hint}")
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return kind(**tuples)


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values; `build` takes them back."""
    values = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    return {
        name: list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
    }


def check_types(config: Any) -> None:
    """Raise `ConfigError` for the first field whose value is not of its declared type; whole numbers
    become floats where a float is declared."""
    hints = typing.get_type_hints(type(config))
    for item in dataclasses.fields(config):
        value, hint = getattr(config, item.name), hints[item.name]
        if type(value) is int and _accepts(1.0, hint) and not _accepts(1, hint):
            object.__setattr__(config, item.name, float(value))
        elif isinstance(value, Path) and _accepts("", hint):
            object.__setattr__(config, item.name, str(value))
        elif isinstance(value, str) and _is_number(value) and _accepts(1.0, hint) and not _accepts("", hint):
            object.__setattr__(config, item.name, float(value))  # YAML reads 6e-2 as text
        elif not _accepts(value, hint):
            raise ConfigError(item.name, f"must be {_describe(hint)}, not {value!r}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _accepts(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        return any(_accepts(value, arg) for arg in args)
    if origin is Literal:
        return value in args and isinstance(value, str)
    if origin is tuple:
        return isinstance(value, tuple) and all(isinstance(entry, args[0]) for entry in value)
    if origin is not None:
        return isinstance(value, Mapping)
    return type(value) is hint


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        return " or ".join("nothing" if arg is type(None) else _describe(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(args)
    if origin is tuple:
        return "a list of text"
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(hint, "a mapping")


def _at_least(config: Any, least: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise ConfigError(name, f"must be {least} or more, not {value}")
