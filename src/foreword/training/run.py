"""`train`: from a config to a run folder with a trained prefix in it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from foreword.config import TrainConfig
from foreword.data import BadRow
from foreword.data.order import steps_per_epoch
from foreword.errors import CheckpointError, ConfigError
from foreword.init import starting_point
from foreword.methods import Method, Producer, Start, get_method
from foreword.methods.shaped import shape
from foreword.models import Base
from foreword.models.lora import lora_parameters
from foreword.models.sharding import shard
from foreword.prefix import Prefix
from foreword.settings import to_dict
from foreword.tasks import Task
from foreword.training.accelerator import check_trackers, make_accelerator
from foreword.training.adapter import restore_adapter, trained_adapter
from foreword.training.checkpoint import find_checkpoint, read_state
from foreword.training.folder import RunFolder
from foreword.training.heads import start_head, with_head
from foreword.training.loop import Loop
from foreword.training.processes import Processes
from foreword.training.rows import digest, load_rows, task_of

# Settings that may differ between a run and its resumption: they don't change what is computed.
_FREE = {
    "output", "resume", "device", "trackers", "checkpoint_every", "keep_checkpoints", "prefix_dtype", "max_bad_rows", "shard_base",
}  # fmt: skip


class Observer(Protocol):
    """Told what happens in a run; every method may do nothing."""

    def started(self, run: Path, steps: int, done: int, bad_rows: list[BadRow]) -> None: ...
    def updated(self, row: dict[str, Any]) -> None: ...
    def validated(self, row: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class TrainResult:
    """prefix: the best one by validation loss, as saved. run: its folder. history: rows as in history.jsonl.

    initial: the prefix at step 0. steps: updates done. stopped_early: patience ran out.
    """

    prefix: Prefix
    initial: Prefix
    run: Path
    history: list[dict[str, Any]]
    steps: int
    validation_loss: float
    stopped_early: bool


def train(base: Base, config: TrainConfig, observer: Observer | None = None) -> TrainResult:
    """Train a prefix for `base` and write the run folder.

    The base's weights stay as they are. With `config.resume` a run goes on from its newest
    checkpoint, bit-identically on CPU. The global random state is left as it was.
    Raises `ConfigError`, `DataError`, `CheckpointError`, and `NonFiniteError` if a loss or gradient
    is NaN or infinite (no update is made then), `StorageError` if the disk is full, and
    `InterruptedRunError` after SIGINT or SIGTERM, when the run has been saved.
    Under `accelerate launch` all processes call this together; the main one writes, into a folder that
    all of them can read.
    """
    if not config.data and not config.mixture:
        raise ConfigError("data", "name a file of examples")
    if base.tokenizer is None:
        raise ConfigError("model", f"{base.name} has no tokenizer; load the base with foreword.load")
    with torch.random.fork_rng():
        return _train(base, dataclasses.replace(config, model=str(base.name)), observer)


def _train(base: Base, config: TrainConfig, observer: Observer | None) -> TrainResult:
    method = get_method(config.method)
    method.parse_options(config.options)
    check_trackers(config.trackers)
    if config.train != "prefix":
        lora_parameters(base.model)
    accelerator = make_accelerator(base, config)
    processes = Processes(accelerator)
    if config.shard_base:
        shard(base)
    checkpoint = None if config.resume is None else find_checkpoint(Path(config.resume))
    if checkpoint is not None:
        _, saved, saved_inputs = read_state(checkpoint)
        config = _as_before(config, checkpoint, saved)
    torch.manual_seed(config.seed)
    task = task_of(base, config)
    rows = load_rows(task, config)
    inputs = {
        "data": digest(rows.training),
        "validation": digest(rows.held_out),
        "weights": str(base.fingerprint.weights),
    }
    if checkpoint is not None:
        _require_inputs(inputs, checkpoint, saved_inputs)
    torch.manual_seed(config.seed)
    _require_meaning(method, base, config, task)
    start = starting_point(config, base, rows.training, task.labels, task.roles())
    producer = _producer(method, start, config).to(base.device)
    start_head(task, config)
    total = config.steps or math.ceil(config.epochs * steps_per_epoch(len(rows.training), config.batch_size))
    lr = method.default_lr if config.lr is None else config.lr
    # what the run resolved to; saved, so that it can be done again
    config = dataclasses.replace(config, lr=lr, template=task.template, steps=total)
    if checkpoint is None:
        folder = RunFolder(processes.from_main(lambda: RunFolder.create(config).path))
    else:
        folder = RunFolder.of_checkpoint(checkpoint)
    observer = observer if processes.main else None
    with (
        trained_adapter(base, producer, config) as adapted,
        Loop(task, with_head(adapted, task, config), rows, config, folder, inputs, accelerator, observer) as loop,
    ):
        initial = start.prefix if method.merge(base.model) == "softmax" else producer.finish()
        loop.prepare(checkpoint)
        if observer is not None:
            observer.started(folder.path, total, loop.progress.step, rows.bad)
        loop.run()
    processes.write(folder.plot)
    processes.wait()
    if config.train != "prefix":
        restore_adapter(base, folder.lora)
    history = folder.rows()
    best = float(loop.progress.best_loss if loop.progress.best_loss is not None else math.nan)
    return TrainResult(
        Prefix.load(folder.prefix), initial, folder.path, history, loop.progress.step, best, loop.stopped_early
    )


def _producer(method: Method, start: Start, config: TrainConfig) -> Producer:
    """The method's producer, with the options for all."""
    producer = method.start(start, method.parse_options(config.options))
    return shape(producer, start, config.frozen_tokens, config.dropout)


def _require_meaning(method: Method, base: Base, config: TrainConfig, task: Task) -> None:
    """Raise `ConfigError` for settings that have no meaning together."""
    merge = method.merge(base.model)
    if config.shard_base and (merge == "conditioned" or config.init == "mean"):
        raise ConfigError("shard_base", "this method or start looks embeddings up, which needs a whole table of them")
    if merge == "embedding" and (config.slots or config.lengths):
        field = "slots" if config.slots else "lengths"
        raise ConfigError(field, f"{method.name} stands among the embeddings of {base.name}; it has no slots")
    if merge == "memory" and config.lengths:
        raise ConfigError("lengths", "a memory has no virtual tokens")
    if base.model_slots.route == "cache" and merge in ("gated", "memory"):
        raise ConfigError(
            "method", f"{method.name} can't be attached to {base.name}, whose attention is code of its own"
        )
    if (places := task.places) and (merge != "embedding" or places != config.length):
        meant = f"length is {config.length}" if merge == "embedding" else f"{method.name} inserts none on {base.name}"
        raise ConfigError("template", f"has {places} places for virtual tokens ([V]), but {meant}")


def _as_before(config: TrainConfig, checkpoint: Path, saved: dict[str, Any]) -> TrainConfig:
    """`config` with what it leaves open taken from the run it resumes. Raises `CheckpointError` naming the
    first setting in which it would differ."""
    left_open: dict[str, Any] = {
        name: saved.get(name) for name in ("lr", "template", "steps") if getattr(config, name) is None
    }
    config = dataclasses.replace(config, **left_open)
    for name, value in to_dict(config).items():
        if name not in _FREE and value != saved.get(name):
            raise CheckpointError(
                f"{checkpoint} was made with {name} {saved.get(name)!r}, not {value!r}; resume with the same settings"
            )
    return config


def _require_inputs(inputs: dict[str, str], checkpoint: Path, saved: dict[str, Any]) -> None:
    """Raise `CheckpointError` if the rows or the base's weights are not those of the run."""
    for name, own in inputs.items():
        if saved.get(name) != own:
            raise CheckpointError(f"{checkpoint} was made with other {name}; resume with the same, or start a new run")
