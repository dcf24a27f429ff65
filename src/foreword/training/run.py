"""`train`: from a config to a run folder with a trained prefix in it."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from foreword.config import TrainConfig, to_dict
from foreword.data import BadRow, Example, load_examples
from foreword.data.order import HELD_OUT, held_out, steps_per_epoch
from foreword.errors import CheckpointError, ConfigError
from foreword.init import starting_point
from foreword.methods import get_method
from foreword.models import Base
from foreword.models.lora import lora_parameters
from foreword.models.rendering import Renderer
from foreword.models.sharding import shard
from foreword.prefix import Prefix
from foreword.tasks.lm import require_decoder
from foreword.training.accelerator import check_trackers, make_accelerator
from foreword.training.adapter import restore_adapter, trained_adapter
from foreword.training.checkpoint import find_checkpoint, read_state
from foreword.training.folder import RunFolder
from foreword.training.loop import Loop
from foreword.training.processes import Processes

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
    if not config.data:
        raise ConfigError("data", "name a file of examples")
    if base.tokenizer is None:
        raise ConfigError("model", f"{base.name} has no tokenizer; load the base with foreword.load")
    require_decoder(base)
    with torch.random.fork_rng():
        return _train(base, dataclasses.replace(config, model=str(base.name)), observer)


def _train(base: Base, config: TrainConfig, observer: Observer | None) -> TrainResult:
    method = get_method(config.method)
    options = method.parse_options(config.options)
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
    renderer = Renderer(base.tokenizer, config.template, config.input_field)
    examples, held_out, bad = _data(base, config, renderer)
    inputs = {"data": _digest(examples), "validation": _digest(held_out), "weights": str(base.fingerprint.weights)}
    if checkpoint is not None:
        _require_inputs(inputs, checkpoint, saved_inputs)
    torch.manual_seed(config.seed)
    start = starting_point(config, base, examples)
    producer = method.start(start, options).to(base.device)
    total = config.steps or math.ceil(config.epochs * steps_per_epoch(len(examples), config.batch_size))
    lr = method.default_lr if config.lr is None else config.lr
    # what the run resolved to; saved, so that it can be done again
    config = dataclasses.replace(config, lr=lr, template=renderer.template, steps=total)
    if checkpoint is None:
        folder = RunFolder(processes.from_main(lambda: RunFolder.create(config).path))
    else:
        folder = RunFolder.of_checkpoint(checkpoint)
    observer = observer if processes.main else None
    with (
        trained_adapter(base, producer, config) as trained,
        Loop(base, trained, examples, held_out, config, folder, inputs, accelerator, observer) as loop,
    ):
        loop.prepare(checkpoint)
        if observer is not None:
            observer.started(folder.path, total, loop.progress.step, bad)
        loop.run()
    processes.write(folder.plot)
    processes.wait()
    if config.train != "prefix":
        restore_adapter(base, folder.lora)
    rows = folder.rows()
    best = float(loop.progress.best_loss if loop.progress.best_loss is not None else math.nan)
    return TrainResult(
        Prefix.load(folder.prefix), start.prefix, folder.path, rows, loop.progress.step, best, loop.stopped_early
    )


def _data(base: Base, config: TrainConfig, renderer: Renderer) -> tuple[list[Example], list[Example], list[BadRow]]:
    """(training rows, validation rows, bad rows of both)."""
    settings: dict[str, Any] = {
        "target_field": config.target_field,
        "max_tokens": config.max_tokens or base.max_positions - config.length,
        "max_bad_rows": config.max_bad_rows,
    }
    examples, bad = load_examples(config.data, renderer, **settings)
    if config.validation is not None:
        validation, more = load_examples(
            config.validation, renderer, **settings, limit=config.validation_rows, split="validation"
        )
        return examples, validation, bad + more
    chosen = held_out(len(examples), config.validation_rows or HELD_OUT, config.seed)
    if not chosen:
        raise ConfigError("validation", f"{len(examples)} rows are too few to hold some out; name a validation file")
    left_out = set(chosen)
    kept = [example for index, example in enumerate(examples) if index not in left_out]
    return kept, [examples[index] for index in chosen], bad


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
    for name, digest in inputs.items():
        if saved.get(name) != digest:
            raise CheckpointError(f"{checkpoint} was made with other {name}; resume with the same, or start a new run")


def _digest(examples: list[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.prompt_ids, example.target_ids)).encode())
    return "sha256:" + digest.hexdigest()
