"""Settings: one frozen dataclass per verb, read from TOML, YAML or JSON, checked once, saved with the result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from foreword.errors import ConfigError
from foreword.settings import at_least, check_types

DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True)
class DataConfig:
    """What training and evaluation share about data.

    model: hub id, folder, GGUF file or bundled name. data: JSONL, CSV, TSV, Parquet, a Datasets folder,
    or a Datasets id with an optional split after a colon (`org/name:train`).
    task, task_options: what is asked of the model (`foreword.tasks.TASKS`), and its own settings.
    template: the whole prompt with {field} in it; None: the tokenizer's chat template if there is one,
    else the bare input. max_bad_rows: above this many bad rows the run stops before it starts.
    input_field, target_field: None: the task's own (input and target, text and label, …).
    quantise: frozen weights in fewer bits; lora: folder of a PEFT adapter on the base (see `foreword.load`).
    max_tokens: longest row (prompt and target); None: what the model's positions allow.
    """

    data: str = ""
    model: str = DEFAULT_MODEL
    task: str = "lm"
    task_options: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    input_field: str | None = None
    target_field: str | None = None
    max_bad_rows: int = 0
    max_tokens: int | None = None
    batch_size: int = 16
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantise: Literal["int8", "bnb-8bit", "bnb-4bit"] | None = None
    lora: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, 0, "max_bad_rows")
        at_least(self, 1, "batch_size", "max_tokens")


@dataclass(frozen=True)
class TrainConfig(DataConfig):
    """One training run.

    validation: held-out rows; None: up to 96 rows, at most a tenth, are taken from the data.
    validation_rows: how many of its first rows are used; None: all.
    method, length, options: the parameterisation, virtual tokens, and the method's own settings.
    init: text, vocab, labels (the words of the classes), mean (every virtual token the mean of words' embeddings),
    random or prefix. init_text: the text (or the words for vocab and mean; None: the first training rows, or the most
    frequent words). init_prefix: the folder of the prefix to go on from.
    steps: optimizer steps; None: as many as `epochs` over the data.
    batch_size: rows per optimizer step; accumulation: the parts each batch is computed in.
    lr: peak learning rate; None: the method's own default. warmup: steps of linear warm-up. decay to
    `final_lr` × lr by `scheduler`. clip: largest gradient norm. patience: validations without
    improvement before stopping; None: never. validate_every, checkpoint_every: in steps; None: a
    tenth of the run. keep_checkpoints: newest ones kept.
    packing: lay a batch's rows one behind another without padding, where task (lm) and base allow it.
    shard_base: under `accelerate launch`, spread the frozen weights over the processes (FSDP2).
    train: what learns, where the base carries a LoRA: the prefix, the LoRA (the prefix stays as it
    starts), or both. lora_lr: the LoRA's peak learning rate.
    prefix_dtype: how the finished prefix is stored.
    slots: which slots take a prefix (`decoder.0-5`, `cross`, `encoder.3`); none: all that the task uses.
    lengths: fewer virtual tokens for some of them, by the same patterns. frozen_tokens: so many first virtual tokens
    stay as they start. dropout: share of virtual tokens left out of each training step.
    head_lr: a head's peak learning rate. init_head: the folder of a trained head to go on from.
    mixture: several data sets for one prefix, each with a head of its own: name → its settings (task, task_options,
    data, validation, template, input_field, target_field); data and validation are then left empty.
    output: run folder; None: a new numbered one in runs/. resume: a run folder or checkpoint to go on from.
    """

    validation: str | None = None
    validation_rows: int | None = 96
    method: str = "direct"
    length: int = 32
    options: Mapping[str, Any] = field(default_factory=dict)
    slots: tuple[str, ...] = ()
    lengths: Mapping[str, Any] = field(default_factory=dict)
    frozen_tokens: int = 0
    dropout: float = 0.0
    head_lr: float = 1e-3
    init_head: str | None = None
    mixture: Mapping[str, Any] = field(default_factory=dict)
    init: Literal["text", "vocab", "labels", "mean", "random", "prefix"] = "text"
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
    packing: bool = True
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
        at_least(self, 0, "warmup", "final_lr", "weight_decay", "seed", "frozen_tokens", "dropout")
        at_least(self, 1, "length", "steps", "accumulation", "validation_rows", "patience")
        at_least(self, 1, "validate_every", "checkpoint_every", "keep_checkpoints")
        if self.dropout >= 1:
            raise ConfigError("dropout", f"must be below 1, not {self.dropout}")
        for name in ("epochs", "lr", "lora_lr", "head_lr", "clip"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(name, f"must be above 0, not {value}")
        if self.accumulation > self.batch_size:
            raise ConfigError("accumulation", f"{self.accumulation} parts don't fit a batch of {self.batch_size} rows")
        if self.init == "prefix" and self.init_prefix is None:
            raise ConfigError("init_prefix", "init 'prefix' needs the folder of a saved prefix")
        if self.init in ("random", "prefix", "labels") and self.init_text is not None:
            raise ConfigError("init_text", f"has no meaning with init {self.init!r}")


TEXT_METRICS = ("bleu", "chrf", "rouge_l", "exact_match")
METRICS = ("loss", "perplexity", *TEXT_METRICS, "accuracy", "macro_f1", "entity_f1", "f1")


@dataclass(frozen=True)
class EvalConfig(DataConfig):
    """One evaluation. prefix: a saved prefix's folder; None: the plain base. rows: only the first so many.

    head: the folder of a trained task (`run/head`, or `run/head:name` of a mixture); None: the one beside the prefix, and
    without one `task` and `task_options` say what is asked. metrics: None: all that the task has.
    """

    prefix: str | None = None
    head: str | None = None
    metrics: tuple[str, ...] | None = None
    max_new_tokens: int = 64
    rows: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "max_new_tokens", "rows")
        for metric in self.metrics or ():
            if metric not in METRICS:
                raise ConfigError("metrics", f"{metric!r} is not known; choose from {', '.join(METRICS)}")
        if self.metrics is not None and not self.metrics:
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
        at_least(self, 0, "seed", "recover", "keep_loss")
        at_least(self, 1, "validation_rows", "mass_rows", "max_new_tokens")
        for name in ("lr", "max_kb", "keep_loss"):
            if (value := getattr(self, name)) is not None and not 0 <= value < math.inf:
                raise ConfigError(name, f"must be a finite number of 0 or more, not {value}")
        if self.keep_loss is not None and self.max_kb is not None:
            raise ConfigError("max_kb", "give keep_loss or max_kb, not both: only one of them can pick")
        if self.output is not None and self.keep_loss is None and self.max_kb is None:
            raise ConfigError("output", "nothing is picked without keep_loss or max_kb, so there is nothing to write")
