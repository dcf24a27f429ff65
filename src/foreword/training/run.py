"""`train`: from a config to a run folder with a trained prefix in it."""

from __future__ import annotations

import dataclasses
import math
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from foreword import status
from foreword.base import Base
from foreword.base.chat import dated, prints_date
from foreword.base.rendering import require_tokenizer
from foreword.base.sharding import shard
from foreword.config import TrainConfig
from foreword.data.order import steps_per_epoch
from foreword.errors import ConfigError
from foreword.init import Beginning, starting_point
from foreword.methods import Method, Producer, get_method
from foreword.methods.token_options import with_token_options
from foreword.models.lora import lora_parameters
from foreword.objectives import Objective, get_objective
from foreword.prefix import Prefix
from foreword.tasks import Task
from foreword.training.accelerator import check_trackers, make_accelerator
from foreword.training.checkpoint import find_checkpoint, read_state
from foreword.training.events import Finished, Observer
from foreword.training.folder import RunFolder
from foreword.training.head import start_head
from foreword.training.loop import Job, Loop
from foreword.training.lora import restore_lora, trained_lora
from foreword.training.plan import measured_rows, planned, shortcomings, step_tokens
from foreword.training.processes import Processes
from foreword.training.result import TrainResult
from foreword.training.resuming import DATE, rendering_date, require_inputs, with_saved_settings
from foreword.training.rows import RowBatches, RunRows, digest, load_rows, task_of
from foreword.training.storing import require_store, store_result
from foreword.training.trained import Trained

MOST_STEPS = 10**12  # at a thousand a second, thirty years


def train(base: Base, config: TrainConfig, observer: Observer | None = None) -> TrainResult:
    """Train a prefix for `base` and write the run folder.

        >>> result = foreword.train(base, foreword.TrainConfig(data="rows.jsonl", length=4, steps=2, output="run"))
        >>> result.prefix.length, result.steps
        (4, 2)

    The base's weights stay as they are. With `config.resume` a run goes on from its newest
    checkpoint, bit-identically on CPU. The global random state is left as it was.
    Raises `ConfigError`, `DataError`, `CheckpointError`, and `NonFiniteError` if a loss or gradient
    is NaN or infinite (no update is made then), `StorageError` if the disk is full,
    `InterruptedRunError` after SIGINT or SIGTERM, when the run has been saved, and `RunInUseError` if
    another run is going on in the same folder.
    Under `accelerate launch` all processes call this together; the main one writes, into a folder that
    all of them can read.
    """
    if not config.data and not config.mixture:
        raise ConfigError("data", "name a file of examples")
    require_tokenizer(base.tokenizer, str(base.name))
    with torch.random.fork_rng():
        return _train(base, dataclasses.replace(config, model=str(base.name)), observer)


@dataclass(frozen=True)
class _Prepared:
    """What a run needs before it gets a folder. config: resolved. initial: the prefix at step 0."""

    config: TrainConfig
    task: Task[Any]
    rows: RunRows
    inputs: dict[str, str]
    producer: Producer
    initial: Prefix


def _train(base: Base, config: TrainConfig, observer: Observer | None) -> TrainResult:
    method = get_method(config.method)
    _check(method, base, config)
    accelerator = make_accelerator(base, config)
    processes = Processes(accelerator)
    observer = observer if processes.main else None
    if config.shard_base:
        shard(base)
    with ExitStack() as held:
        checkpoint = None if config.resume is None else _held_checkpoint(Path(config.resume), processes, held)
        ready = _prepare(method, base, config, checkpoint)
        folder = _folder(ready.config, checkpoint, processes, held)
        return _trained(ready, base, folder, checkpoint, accelerator, observer)


def _trained(
    ready: _Prepared,
    base: Base,
    folder: RunFolder,
    checkpoint: Path | None,
    accelerator: Any,
    observer: Observer | None,
) -> TrainResult:
    processes = Processes(accelerator)
    with trained_lora(base, ready.config) as lora:
        trained = Trained(
            ready.producer,
            head=ready.task.head,
            head_lr=ready.config.head_lr,
            lora=lora,
            lora_lr=ready.config.lora_lr,
            train_prefix=ready.config.train != "lora",
        )
        loop = _run(_job(ready, trained, folder), accelerator, ready.rows, checkpoint, observer)
    processes.write(folder.plot)
    processes.wait()
    if ready.config.train != "prefix":
        restore_lora(base, folder.lora)
    processes.write(partial(store_result, ready.config, folder.path))
    return _result(loop, folder, ready.initial, observer)


def _prepare(method: Method, base: Base, config: TrainConfig, checkpoint: Path | None) -> _Prepared:
    """Read the rows, and make the prefix at step 0. Raises `ConfigError`, `DataError` and `CheckpointError`."""
    saved_inputs = None
    if checkpoint is not None:
        _, recorded, saved_inputs = read_state(checkpoint)
        config = with_saved_settings(config, checkpoint, recorded)
    torch.manual_seed(config.seed)
    task = task_of(base, config)
    date = rendering_date(saved_inputs)
    with dated(date):
        rows = load_rows(task, config)
    inputs = _digests(rows, base) | ({DATE: date} if prints_date(base.tokenizer) else {})
    if saved_inputs is not None:
        require_inputs(inputs, checkpoint, saved_inputs)
    torch.manual_seed(config.seed)
    _require_compatible(method, base, config, task)
    _require_reference(get_objective(config.objective), config, task)
    start = starting_point(base, rows.training, _beginning(config), task.labels, task.roles())
    producer = method.start(start, method.parse_options(config.options))
    producer = with_token_options(producer, start, config.frozen_tokens, config.dropout).to(base.device)
    start_head(task, config)
    initial = start.prefix if method.kind(base.model).is_cache else producer.finish()
    return _Prepared(_resolved(config, method, task, rows), task, rows, inputs, producer, initial)


def _job(ready: _Prepared, trained: Trained, folder: RunFolder) -> Job:
    config, rows = ready.config, ready.rows
    measured = measured_rows(config, rows.training, rows.held_out, int(config.steps or 1))
    source = RowBatches(ready.task, rows.training, config)
    objective = get_objective(config.objective)
    return Job(
        ready.task, objective, trained, source, rows.held_out, config, folder, ready.inputs, measured,
        step_tokens(config, rows.training),
    )  # fmt: skip


def _check(method: Method, base: Base, config: TrainConfig) -> None:
    """Raise what can be raised before anything is read."""
    method.parse_options(config.options)
    get_objective(config.objective)
    check_trackers(config.trackers)
    require_store(config)
    if config.train != "prefix":
        lora_parameters(base.model)


def _beginning(config: TrainConfig) -> Beginning:
    return Beginning(
        init=config.init,
        length=config.length,
        text=config.init_text,
        prefix=config.init_prefix,
        method=config.method,
        seed=config.seed,
        slots=config.slots,
        lengths=config.lengths,
    )


def _resolved(config: TrainConfig, method: Method, task: Task[Any], rows: RunRows) -> TrainConfig:
    """What the run comes to; saved, so that it can be done again."""
    steps = config.steps or _steps_of(config.epochs, steps_per_epoch(len(rows.training), config.batch_size))
    lr = method.default_lr if config.lr is None else config.lr
    config = dataclasses.replace(config, lr=lr, template=task.template, steps=steps)
    return planned(config, rows.training, rows.held_out, steps)


def _steps_of(epochs: float, per_epoch: int) -> int:
    """The optimizer steps of so many epochs. Raises `ConfigError` where no run would ever end."""
    if epochs * per_epoch > MOST_STEPS:
        raise ConfigError("epochs", f"{epochs:g} of {per_epoch} steps each are more than {MOST_STEPS:,} steps")
    return math.ceil(epochs * per_epoch)


def _held_checkpoint(resume: Path, processes: Processes, held: ExitStack) -> Path:
    """Return the checkpoint to go on from, with its run's folder held by the main process until `held` ends."""
    folder = RunFolder.of_checkpoint(find_checkpoint(resume))

    def hold() -> None:
        folder.hold()
        held.callback(folder.release)

    processes.from_main(hold)
    return find_checkpoint(resume)  # once more: another run may have gone on until now


def _folder(config: TrainConfig, checkpoint: Path | None, processes: Processes, held: ExitStack) -> RunFolder:
    """Return the run's folder. A new one is made and held by the main process until `held` ends."""
    if checkpoint is not None:
        return RunFolder.of_checkpoint(checkpoint)

    def create() -> Path:
        folder = RunFolder.create(config)
        held.callback(folder.release)
        return folder.path

    return RunFolder(processes.from_main(create))


def _run(job: Job, accelerator: Any, rows: RunRows, checkpoint: Path | None, observer: Observer | None) -> Loop:
    if checkpoint is None and (said := shortcomings(job.config, rows.training, job.measured, rows.held_out)):
        status.note(f"a short run: {'; '.join(said)}")
    with Loop(job, accelerator, observer) as loop:
        loop.prepare(checkpoint, rows.bad)
        loop.run()
    return loop


def _result(loop: Loop, folder: RunFolder, initial: Prefix, observer: Observer | None) -> TrainResult:
    best = float(loop.state.best_loss if loop.state.best_loss is not None else math.nan)
    if observer is not None:
        observer(Finished(folder.path, loop.state.step, best, loop.stopped_early))
    return TrainResult(
        prefix=Prefix.load(folder.prefix),
        initial=initial,
        run=folder.path,
        history=folder.rows(),
        steps=loop.state.step,
        validation_loss=best,
        stopped_early=loop.stopped_early,
    )


def _digests(rows: RunRows, base: Base) -> dict[str, str]:
    """What the result depends on, beside the settings."""
    return {
        "data": digest(rows.training),
        "validation": digest(rows.held_out),
        "weights": str(base.fingerprint.weights),
    }


def _require_reference(objective: Objective, config: TrainConfig, task: Task[Any]) -> None:
    """Raise `ConfigError` where an objective would compare with a plain base that there isn't."""
    if not objective.needs_reference:
        return
    if task.head is not None:
        reason = f"task {task.name} trains a head, and the plain base has none"
    elif task.places:
        reason = "the template has places for virtual tokens ([V]), which the plain base can't fill"
    elif config.train != "prefix":
        reason = "the base's LoRA is trained too"
    else:
        return
    raise ConfigError("objective", f"{objective.name} compares with the plain base, but {reason}")


def _require_compatible(method: Method, base: Base, config: TrainConfig, task: Task[Any]) -> None:
    """Raise `ConfigError` for settings that have no meaning together."""
    kind = method.kind(base.model)
    if config.shard_base and (kind.reads_input or config.init == "mean"):
        raise ConfigError("shard_base", "this method or start looks embeddings up, which needs a whole table of them")
    if kind.inserted and (config.slots or config.lengths):
        field = "slots" if config.slots else "lengths"
        raise ConfigError(field, f"{method.name} stands among the embeddings of {base.name}; it has no slots")
    if not kind.has_tokens and config.lengths:
        raise ConfigError("lengths", "a memory has no virtual tokens")
    if base.model_slots.route == "cache" and not kind.passes_as_cache:
        raise ConfigError(
            "method", f"{method.name} can't be attached to {base.name}, whose attention is code of its own"
        )
    if (places := task.places) and (not kind.inserted or places != config.length):
        meant = f"length is {config.length}" if kind.inserted else f"{method.name} inserts none on {base.name}"
        raise ConfigError("template", f"has {places} places for virtual tokens ([V]), but {meant}")
