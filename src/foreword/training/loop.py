"""The loop: batches, updates, validations and checkpoints, and nothing applied that isn't finite."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from foreword.config import TrainConfig
from foreword.data import BadRow, Item
from foreword.data.views import token_counts
from foreword.errors import InterruptedRunError, NonFiniteError
from foreword.objectives import Objective
from foreword.tasks import Predictions, Task
from foreword.training.accelerator import start_trackers
from foreword.training.activations import checkpointed_layers
from foreword.training.checkpoint import RunState, load_checkpoint
from foreword.training.events import Observer, Saved, Started, Stepped, Validated
from foreword.training.folder import RunFolder
from foreword.training.forecast import Forecast
from foreword.training.journal import Journal
from foreword.training.keeping import Keeper
from foreword.training.late import Unread, reads_late
from foreword.training.processes import Processes
from foreword.training.rows import BatchSource
from foreword.training.schedule import learning_rate, warmup_steps
from foreword.training.signals import WATCHED, Signals
from foreword.training.trained import Trained
from foreword.training.update import Update, not_finite
from foreword.training.validation import Validation


@dataclass(frozen=True)
class Job:
    """What a run is made of. source: its batches. held_out: rows that it doesn't learn from; measured: those of
    them that each validation measures. inputs: digests of what it was given; config: resolved, with learning rate and
    number of steps. step_tokens: tokens of an update, in the mean."""

    task: Task[Any]
    objective: Objective
    trained: Trained
    source: BatchSource
    held_out: Sequence[Item]
    config: TrainConfig
    folder: RunFolder
    inputs: dict[str, str]
    measured: Sequence[Item]
    step_tokens: float


class Loop:
    """One run. `prepare` starts or resumes it, `run` takes it to the end; both within `with`."""

    def __init__(self, job: Job, accelerator: Any, observer: Observer | None) -> None:
        self.state = RunState()
        self.stopped_early = False
        self._job, self._config = job, job.config
        self._task, self._trained, self._folder = job.task, job.trained, job.folder
        self._total = int(job.config.steps or 1)
        self._accelerator, self._processes = accelerator, Processes(accelerator)
        self._late = reads_late(job.task.base.device, self._processes.count)
        self._update = Update(
            job.trained.groups(),
            float(job.config.lr or 0),
            weight_decay=job.config.weight_decay,
            clip=job.config.clip,
            late=self._late,
        )
        self._keeper = Keeper(
            job.task, job.trained, job.config, job.folder, rows=job.source.num_rows, inputs=job.inputs
        )
        self._journal = Journal(job.folder, self._processes, accelerator, observer, self._total)
        self._validation = Validation(
            job.task, job.measured, job.config.batch_size, self._processes, lambda: self._stop_if(self._agreed())
        )
        self._forecast = Forecast(self._total, job.step_tokens, 1 + self._total // int(job.config.validate_every or 1))
        self._unread: Unread | None = None
        self._reported, self._owed = 0.0, False
        self._signals = Signals(impatient=self._processes.count == 1)

    def __enter__(self) -> Loop:
        self._processes.write(lambda: start_trackers(self._accelerator, self._config, self._folder.path))
        self._signals.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._signals.__exit__()
        for tracker in self._accelerator.trackers:  # end_training would also end the process group
            tracker.finish()

    def prepare(self, checkpoint: Path | None, bad_rows: Sequence[BadRow] = ()) -> None:
        """Go on from `checkpoint`, or validate and save the prefix at step 0. bad_rows: to be told at the start."""
        if checkpoint is not None:
            self.state = load_checkpoint(checkpoint, self._trained, self._update.optimizer)
        self._journal.tell(Started(self._folder.path, self._total, self.state.step, tuple(bad_rows)))
        if checkpoint is not None:
            self._processes.write(lambda: self._folder.mend(self.state.step, self.state.validated))
            if self._validation_due():  # the run was stopped between an update and its validation
                self._validate()
        else:
            self._validate()
            self._announce()
            self._save()

    def _announce(self) -> None:
        """Say how much there is to do, and how long that takes."""
        rows = self._job.source.num_rows
        times = f", {self._total * self._config.batch_size / rows:.3g} times over {rows:,} rows" if rows else ""
        tokens = int(token_counts(self._job.measured).sum())
        self._forecast.announce(times, self._validation.seconds, tokens)

    def run(self) -> None:
        """All remaining updates."""
        first = self.state.step
        batches = self._job.source.batches(first)
        with checkpointed_layers(self._task.base, self._config.activation_checkpointing):
            for step, items in zip(range(first + 1, self._total + 1), batches, strict=False):
                if self._out_of_patience():
                    self.stopped_early = True
                    break
                self._step(step, items)
                if self._validation_due():
                    self._read()
                    self._validate()
                if self._checkpoint_due(step) or self._out_of_patience():
                    self._read()
                    self._save()

    def _due(self, every: int | None, step: int) -> bool:
        """Whether `step` is one of every so many (None: a tenth of the run), or the last."""
        return step == self._total or step % (every or max(1, self._total // 10)) == 0

    def _checkpoint_due(self, step: int) -> bool:
        """Whether to save. Where the setting is left open, what is due waits until saving has taken little time."""
        every = self._config.checkpoint_every
        self._owed = self._due(every, step) or (every is None and self._owed)
        return self._owed and (every is not None or step == self._total or self._keeper.is_cheap())

    def _step(self, step: int, items: Sequence[Item]) -> None:
        """One optimizer step over `items`, in `accumulation` parts; the loss is the mean over all
        predictions of the step, whichever part or process they are in."""
        began, config = time.perf_counter(), self._config
        warmup = warmup_steps(config.warmup, self._total)
        rate = learning_rate(step, self._total, float(config.lr or 0), warmup, config.final_lr, config.scheduler)
        self._update.set_rate(rate)
        count = sum(self._task.units(item) for item in items)
        losses: list[Any] = []
        for part in _parts(self._processes.share(items), config.accumulation):
            if self._processes.count == 1 and self._signals.received is not None:
                self._stop(self._signals.received)
            losses.append(self._backward(part, count) if part else self._idle(items[0]))
        unread = Unread(step, items, rate, count, began)
        if self._late:
            self._launch(unread, sum(losses))
        else:
            self._apply(unread, sum(map(float, losses)))

    def _apply(self, unread: Unread, loss: float) -> None:
        """Update, and report the step."""
        total, *signals = self._processes.sum_gradients(self._update.parameters, [loss, *self._asked()])
        if (what := self._update.apply(total)) is not None:
            self._fail(unread, what)
        self.state = dataclasses.replace(self.state, step=unread.step)
        self._report(unread, total)
        self._stop_if(signals)

    def _launch(self, unread: Unread, loss: Tensor) -> None:
        """Update without waiting for the device, then report the step before, which it has done meanwhile."""
        later = self._update.launch(loss, before_step=self._read)
        self.state = dataclasses.replace(self.state, step=unread.step)
        self._unread = unread._replace(later=later)
        self._stop_if(self._asked())

    def _read(self) -> None:
        """Report the step that is still unread, if any."""
        unread, self._unread = self._unread, None
        if unread is not None and unread.later is not None:
            loss, norm = unread.later.read()
            if (what := not_finite(loss, norm)) is not None:
                self._update.drop()
                self._fail(unread, what)
            self._report(unread, loss)

    def _report(self, unread: Unread, loss: float) -> None:
        began, self._reported = max(unread.began, self._reported), time.perf_counter()  # a late one overlaps the next
        speed = round(unread.units / (self._reported - began), 2)
        self._journal.tell(Stepped(unread.step, loss, unread.rate, speed))
        self._forecast.stepped(unread.step)

    def _fail(self, unread: Unread, what: str) -> NoReturn:
        self._journal.write({"step": unread.step, "not_finite": what})
        rows = ", ".join(item.where for item in unread.items)
        raise NonFiniteError(
            f"step {unread.step}: the {what} is not finite; no update was made (rows {rows}). The best prefix so far "
            f"is in {self._folder.prefix}; a lower learning rate than {self._config.lr:g} may help"
        )

    def _backward(self, items: Sequence[Item], count: float) -> Tensor:
        with self._autocast():
            loss = self._losses(items).sum() / count
        torch.autograd.backward(loss)
        return loss.detach()

    def _losses(self, items: Sequence[Item]) -> Tensor:
        objective = self._job.objective
        references: Sequence[Predictions] = ()
        if objective.needs_reference:
            with torch.no_grad():
                references = self._task.predict(None, items)
        return objective.weighted(self._task.predict(self._trained.prefix(), items), references)

    def _idle(self, item: Item) -> float:
        """A part without rows. Where the base is sharded this process's share of it is needed all the same."""
        if self._config.shard_base:
            with self._autocast():
                loss = self._losses([item]).sum() * 0.0
            torch.autograd.backward(loss)
        return 0.0

    def _autocast(self) -> Any:
        enabled = self._config.mixed_precision == "bf16"
        return torch.autocast(self._task.base.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _validation_due(self) -> bool:
        step = self.state.step
        return self.state.validated < step and self._due(self._config.validate_every, step)

    def _validate(self) -> None:
        """Measure the prefix as it would be stored; keep it in prefix/ if it is the best so far."""
        prefix = self._trained.finished_prefix().to(getattr(torch, self._config.prefix_dtype), "cpu")
        step = self.state.step
        with self._autocast():
            loss = self._validation.loss(prefix, step)
        best = self.state.best_loss is None or loss < self.state.best_loss
        if best:
            changes: dict[str, Any] = {"best_loss": loss, "best_step": step, "stale": 0}
        else:
            changes = {"stale": self.state.stale + 1}
        self.state = dataclasses.replace(self.state, validated=step, **changes)
        if best:
            self._processes.write(lambda: self._keeper.best(prefix, self.state, self._tell_saved))
        self._journal.tell(Validated(step, loss, best))
        if self._config.samples and (self._processes.main or self._config.shard_base):  # if sharded, all are needed
            with self._autocast():
                samples = self._validation.samples(prefix, step, self._job.held_out[: self._config.samples])
            for sampled in samples:
                self._journal.tell(sampled)

    def _save(self) -> None:
        def write() -> None:
            self._tell_saved("checkpoint", self._keeper.checkpoint(self._update.optimizer, self.state))

        self._processes.write(write)
        self._owed = False

    def _tell_saved(self, what: str, path: Path) -> None:
        self._journal.tell(Saved(self.state.step, what, path))

    def _out_of_patience(self) -> bool:
        patience = self._config.patience
        return patience is not None and self.state.stale >= patience

    def _asked(self) -> list[float]:
        """Which of the watched signals has come to this process, as ones and zeros."""
        return [float(self._signals.received == number) for number in WATCHED]

    def _agreed(self) -> list[float]:
        """The same for any process; all must call it together."""
        return self._processes.sum(*self._asked())

    def _stop_if(self, signals: list[float]) -> None:
        for number, received in zip(WATCHED, signals, strict=True):
            if received:
                self._stop(number)

    def _stop(self, number: int) -> NoReturn:
        try:
            self._read()
        finally:  # the run is saved even if its last step can't be told
            self._update.drop()
            self._save()
        self._processes.wait()
        raise InterruptedRunError(
            f"stopped by {WATCHED[WATCHED.index(number)].name} after step {self.state.step} of {self._total}; "
            f"the run is saved, go on with --resume {self._folder.path}",
            number,
        )


def _parts(items: Sequence[Item], count: int) -> Iterator[Sequence[Item]]:
    """`count` parts of nearly equal size, some empty where there are fewer rows."""
    for number in range(count):
        yield items[number * len(items) // count : (number + 1) * len(items) // count]
