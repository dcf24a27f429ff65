"""The settings of each verb: read from TOML, YAML, JSON or flags, checked once, saved with the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from foreword.errors import ConfigError
from foreword.plain import MOST_INT
from foreword.settings import check, setting

DEFAULT_MODEL = "smollm2-135m"
TEXT_METRICS = ("bleu", "chrf", "rouge_l", "exact_match")
Dtype = Literal["float32", "bfloat16", "float16"]
Shape = Literal["auto", "messages", "conversations", "prompt/completion", "instruction/output", "input/target", "text"]
# The largest values of settings. Nothing as large is useful; a slip of the keyboard gets an error, not a full memory.
MOST_TOKENS = 65_536  # virtual tokens
MOST_ROWS = 65_536  # in a batch
MOST_COUNT = 10**9  # of steps, and of rows of a file
BASE, DATA, MODEL, METHOD, START, STEPS, SAVING, MEASURE, PICK = (
    "base", "data", "task", "prefix", "start", "optimisation", "run", "measuring", "choice",
)  # fmt: skip


@dataclass(frozen=True)
class DataConfig:
    """What all verbs that read rows share; docs/settings.md lists every setting."""

    data: str = setting(
        "", group=DATA, of_data=True, per_task=True,
        help="Rows: JSONL, JSON, CSV, TSV, Parquet or Arrow, a folder or glob of them, a Datasets id (org/name:split), "
        "or - for stdin.",
    )  # fmt: skip
    model: str = setting(
        DEFAULT_MODEL, group=BASE, help="Base model: hub id, folder, .gguf file, or the bundled smollm2-135m."
    )
    task: str = setting(
        "lm", group=MODEL, per_task=True,
        help="What is asked, for instance lm, seq-cls or token-cls; docs/tasks.md lists the tasks.",
    )  # fmt: skip
    task_options: Mapping[str, Any] = setting(
        factory=dict, group=MODEL, per_task=True, flag="--task-option", metavar="NAME=VALUE",
        help="A setting of the task, for instance 'words={good: [great, fine], bad: terrible}'.",
    )  # fmt: skip
    template: str | None = setting(
        group=DATA, of_data=True, per_task=True, worked_out=True,
        help=r"The whole prompt, with {field} for a row's field; \n is a new line. "
        "Without it: the model's chat template if there is one, else the bare input.",
    )  # fmt: skip
    input_field: str | None = setting(
        group=DATA, of_data=True, per_task=True, help="The input's field. Without it: the task's own (input, text, …)."
    )
    target_field: str | None = setting(
        group=DATA, of_data=True, per_task=True,
        help="The target's field. Without it: the task's own (target, label, …).",
    )  # fmt: skip
    shape: Shape = setting(
        "auto", group=DATA, of_data=True, per_task=True,
        help="How lm reads rows; auto: as the first rows look. docs/data.md shows each shape.",
    )  # fmt: skip
    turns: Literal["all", "last"] = setting(
        "all", group=DATA, of_data=True, per_task=True, help="Which of the assistant's turns are learned."
    )
    max_bad_rows: int = setting(
        0, group=DATA, of_data=True, least=0, most=MOST_COUNT, free_on_resume=True,
        help="Bad rows allowed; each is reported and left out. More than that stop the run before it starts.",
    )  # fmt: skip
    max_tokens: int | None = setting(
        group=DATA, of_data=True, least=1, most=MOST_COUNT,
        help="Longest row, prompt and target together. Without it: what the model's positions allow.",
    )  # fmt: skip
    batch_size: int = setting(
        16, group=STEPS, of_data=True, least=1, most=MOST_ROWS, help="Rows at once, or per optimizer step."
    )
    dtype: Dtype = setting("float32", group=BASE, help="How the base's weights are held.")
    quantise: Literal["int8", "bnb-8bit", "bnb-4bit"] | None = setting(
        group=BASE, help="Frozen weights in fewer bits: int8 (torchao), bnb-8bit or bnb-4bit (CUDA)."
    )
    lora: str | None = setting(group=BASE, help="Folder of a PEFT LoRA to put on the base.")
    device: str = setting("auto", group=BASE, free_on_resume=True, help="cpu, cuda, cuda:N or auto.")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class TrainConfig(DataConfig):
    """One training run; docs/settings.md lists every setting."""

    validation: str | None = setting(
        group=DATA, of_data=True, per_task=True,
        help="Held-out rows. Without it: up to 96 rows, at most a tenth, of the data; at least one.",
    )  # fmt: skip
    validation_rows: int | None = setting(
        96, group=DATA, of_data=True, least=1, most=MOST_COUNT,
        help="How many of the held-out rows are used, the first; null: all.",
    )  # fmt: skip
    method: str = setting("direct", group=METHOD, help="How the prefix is parameterised; see foreword methods.")
    length: int = setting(32, group=METHOD, least=1, most=MOST_TOKENS, help="Virtual tokens.")
    options: Mapping[str, Any] = setting(
        factory=dict, group=METHOD, flag="--option", metavar="NAME=VALUE",
        help="A setting of the method, for instance hidden=256.",
    )  # fmt: skip
    objective: str = setting("cross-entropy", group=STEPS, help="What is minimised.")
    slots: tuple[str, ...] = setting(
        (), group=METHOD,
        help="Which attention layers take a prefix: decoder.0-5, cross, encoder.3; may be repeated. "
        "Without it: all that the task uses.",
    )  # fmt: skip
    lengths: Mapping[str, Any] = setting(
        factory=dict, group=METHOD, flag="--lengths", metavar="SLOTS=TOKENS",
        help="Fewer virtual tokens for some slots, for instance decoder.0-5=8.",
    )  # fmt: skip
    frozen_tokens: int = setting(
        0, group=METHOD, least=0, most=MOST_TOKENS, help="So many first virtual tokens stay as they start."
    )
    dropout: float = setting(0.0, group=METHOD, least=0, below=1, help="Share of virtual tokens left out of each step.")
    head_lr: float = setting(1e-3, group=STEPS, above=0, help="A head's peak learning rate.")
    init_head: str | None = setting(group=START, help="The folder of a trained head to go on from.")
    mixture: Mapping[str, Any] = setting(
        factory=dict, group=DATA, flag=None,
        help="Several data sets for one prefix, each with a head of its own: name → its task, task_options, data, "
        "validation, template, input_field, target_field; data and validation are then left empty. In a file only.",
    )  # fmt: skip
    init: Literal["text", "vocab", "labels", "mean", "random", "prefix"] = setting(
        "text", group=START,
        help="What the prefix starts as: the keys and values of a text, of frequent words (vocab), of the classes' "
        "names (labels), of words' mean embedding (mean), noise like the base's own (random), or a saved prefix.",
    )  # fmt: skip
    init_text: str | None = setting(
        group=START, help="The text, or the words for vocab and mean. Without it: first rows, or frequent words."
    )
    init_prefix: str | None = setting(group=START, help="With init prefix: its folder, or team/task of the store.")
    steps: int | None = setting(
        group=STEPS, worked_out=True, least=1, most=MOST_COUNT,
        help="Optimizer steps. Without it: as many as epochs over the data.",
    )  # fmt: skip
    epochs: float = setting(3.0, group=STEPS, above=0, most=1e6, help="Passes over the data, without steps.")
    accumulation: int = setting(
        1, group=STEPS, least=1, most=MOST_ROWS, help="Parts that each batch is computed in, to save memory."
    )
    lr: float | None = setting(
        group=STEPS, worked_out=True, above=0, help="Peak learning rate. Without it: the method's own (direct 0.06)."
    )
    scheduler: Literal["linear", "cosine", "constant"] = setting(
        "linear", group=STEPS, help="How the learning rate falls after the warm-up."
    )
    warmup: int | float | None = setting(
        group=STEPS, worked_out=True, least=0, most=MOST_COUNT, share=True,
        help="Linear warm-up: steps, or a share of them such as 5%. Without it: 5% of the steps, 1 to 10 of them.",
    )  # fmt: skip
    final_lr: float = setting(0.1, group=STEPS, least=0, help="What the rate falls to, as a share of the peak.")
    weight_decay: float = setting(0.0, group=STEPS, least=0, help="AdamW's weight decay.")
    clip: float = setting(1.0, group=STEPS, above=0, help="Largest norm of all gradients together.")
    seed: int = setting(
        0, group=STEPS, of_data=True, least=0, most=MOST_INT, help="Seed of row order and random initialisation."
    )
    mixed_precision: Literal["no", "bf16"] = setting("no", group=STEPS, help="Autocast to bfloat16.")
    activation_checkpointing: bool = setting(
        False, group=STEPS, help="Compute activations anew in backward, to save memory."
    )
    packing: bool = setting(
        True, group=STEPS, help="Lay a batch's rows end to end without padding, where task (lm) and base allow it."
    )
    shard_base: bool = setting(
        False, group=BASE, free_on_resume=True,
        help="Under accelerate launch: spread the frozen weights over the processes (FSDP2).",
    )  # fmt: skip
    train: Literal["prefix", "lora", "both"] = setting(
        "prefix", group=METHOD,
        help="What learns where the base carries a LoRA; with lora the prefix stays as it starts.",
    )  # fmt: skip
    lora_lr: float = setting(2e-4, group=STEPS, above=0, help="The LoRA's peak learning rate.")
    patience: int | None = setting(
        group=SAVING, least=1, most=MOST_COUNT, help="Validations without a better one before the run stops, if any."
    )
    validate_every: int | None = setting(
        group=SAVING, least=1, most=MOST_COUNT, worked_out=True,
        help="Steps between validations. Without it: a tenth of the run, or more if validation_share asks for it.",
    )  # fmt: skip
    validation_share: float | None = setting(
        group=SAVING, worked_out=True, above=0, share=True,
        help="What validations may cost, as a share of training. Without it: 10%, or any if validate_every is given.",
    )  # fmt: skip
    samples: int = setting(
        0, group=SAVING, least=0, most=MOST_COUNT, free_on_resume=True,
        help="Held-out rows answered at each validation, for the eye.",
    )  # fmt: skip
    checkpoint_every: int | None = setting(
        group=SAVING, least=1, most=MOST_COUNT, free_on_resume=True,
        help="Steps between checkpoints. Without it: a tenth of the run, more if that takes over a tenth of the time.",
    )  # fmt: skip
    keep_checkpoints: int = setting(
        2, group=SAVING, least=1, most=MOST_COUNT, free_on_resume=True, help="Newest checkpoints kept."
    )
    prefix_dtype: Dtype = setting(
        "float16", group=SAVING, free_on_resume=True, help="How the finished prefix is stored."
    )
    trackers: tuple[str, ...] = setting(
        (), group=SAVING, free_on_resume=True, commas=True,
        help="Where numbers are logged besides history.jsonl, with commas: tensorboard, trackio, wandb, mlflow and "
        "others that Accelerate knows.",
    )  # fmt: skip
    output: str | None = setting(
        group=SAVING, free_on_resume=True, help="Run folder. Without it: a new numbered one in runs/."
    )
    store: str | None = setting(group=SAVING, free_on_resume=True, help="team/task in the store, for what is trained.")
    resume: str | None = setting(
        group=SAVING, free_on_resume=True, help="Run folder or checkpoint to go on from, with its settings."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accumulation > self.batch_size:
            raise ConfigError("accumulation", f"{self.accumulation} parts don't fit a batch of {self.batch_size} rows")
        if isinstance(self.warmup, float) and self.warmup >= 1:
            raise ConfigError("warmup", f"must be a whole number of steps or a share below 100%, not {self.warmup:g}")
        if self.samples and self.mixture:
            raise ConfigError("samples", "the rows of a mixture are not answered; leave samples out")
        if self.init == "prefix" and self.init_prefix is None:
            raise ConfigError("init_prefix", "init 'prefix' needs the folder of a saved prefix")
        if self.init in ("random", "prefix", "labels") and self.init_text is not None:
            raise ConfigError("init_text", f"has no meaning with init {self.init!r}")


@dataclass(frozen=True)
class EvalConfig(DataConfig):
    """One evaluation; docs/settings.md lists every setting."""

    prefix: str | None = setting(
        group=MEASURE, help="A saved prefix's folder, or team/task. Without it: the plain base."
    )
    head: str | None = setting(
        group=MEASURE,
        help="A trained head (run/head, or run/head:name of a mixture). Without it: the one beside the prefix.",
    )
    metrics: tuple[str, ...] | None = setting(
        group=MEASURE, commas=True, help="Some of the task's, with commas. Without it: all."
    )
    max_new_tokens: int = setting(64, group=MEASURE, least=1, most=10**6, help="Longest answer.")
    rows: int | None = setting(group=MEASURE, least=1, most=MOST_COUNT, help="Only the first so many rows.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metrics is not None and not self.metrics:
            raise ConfigError("metrics", "name at least one")


@dataclass(frozen=True)
class CompressConfig(DataConfig):
    """One sweep over ways to make a trained prefix smaller; docs/settings.md lists every setting.

    If neither data nor validation is named, all settings of data that are left at their defaults are those of the
    prefix's record.
    """

    prefix: str = setting("", group=PICK, flag=None, help="A saved prefix's folder, or team/task of the store.")
    validation: str | None = setting(
        group=DATA, of_data=True, help="Rows to measure on. Without it: those that training held out of the data."
    )
    validation_rows: int | None = setting(
        96, group=DATA, of_data=True, least=1, most=MOST_COUNT, flag="--rows",
        help="Only the first so many rows to measure on.",
    )  # fmt: skip
    seed: int = setting(
        0, group=DATA, of_data=True, least=0, most=MOST_INT,
        help="Order of rows, and which are held out of data that the prefix wasn't trained on.",
    )  # fmt: skip
    choices: tuple[str, ...] = setting(
        (), group=PICK, commas=True,
        help="Some of svd-R, int8, drop-to-1/N, merge-to-1/N, drop-to-1/N+int8, …, with commas. "
        "Without it: a dozen of them.",
    )  # fmt: skip
    recover: int = setting(
        0, group=PICK, least=0, most=MOST_COUNT, help="Steps of recovery training for each choice; 0: none."
    )
    lr: float = setting(3e-2, group=PICK, least=0, help="Recovery's peak learning rate.")
    mass_rows: int = setting(
        64, group=MEASURE, least=1, most=MOST_COUNT, help="Training rows on which attention mass is measured."
    )
    bleu: bool = setting(True, group=MEASURE, help="Measure BLEU too, which needs generation.")
    max_new_tokens: int = setting(64, group=MEASURE, least=1, most=10**6, help="Longest answer.")
    keep_loss: float | None = setting(
        group=PICK, least=0, share=True,
        help="Pick the smallest whose validation loss is at most this much higher: 1% or 0.01.",
    )  # fmt: skip
    max_kb: float | None = setting(
        group=PICK, least=0, help="Pick the lowest validation loss of at most so many KB of 1,000 bytes."
    )
    output: str | None = setting(
        group=PICK, help="Folder for what is picked. Without it: the prefix's with -compressed behind its name."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_loss is not None and self.max_kb is not None:
            raise ConfigError("max_kb", "give keep_loss or max_kb, not both: only one of them can pick")
        if self.output is not None and self.keep_loss is None and self.max_kb is None:
            raise ConfigError("output", "nothing is picked without keep_loss or max_kb, so there is nothing to write")
