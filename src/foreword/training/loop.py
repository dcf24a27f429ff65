"""The loop: batches in seeded order, AdamW, validation, checkpoints, and nothing applied that isn't finite."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from foreword.config import TrainConfig
from foreword.errors import InterruptedRunError, NonFiniteError
from foreword.methods import Producer
from foreword.models.lora import save_lora
from foreword.prefix import Prefix
from foreword.settings import to_dict
from foreword.tasks import Task, summed_loss
from foreword.tasks.saved import save_task
from foreword.training.accelerator import start_trackers
from foreword.training.activations import checkpointed_layers
from foreword.training.checkpoint import Progress, load_checkpoint, prune, save_checkpoint
from foreword.training.folder import RunFolder
from foreword.training.late import Later, Unread, guard, reads_late
from foreword.training.processes import Processes
from foreword.training.rows import Rows, order_of
from foreword.training.schedule import learning_rate
from foreword.training.signals import WATCHED, Signals

if TYPE_CHECKING:
    from foreword.training.run import Observer


class Loop:
    """One run's state. `prepare` starts or resumes it, `run` takes it to the end; both within `with`."""

    def __init__(
        self,
        task: Task,
        producer: Producer,
        rows: Rows,
        config: TrainConfig,
        folder: RunFolder,
        inputs: dict[str, str],
        accelerator: Any,
        observer: Observer | None,
    ) -> None:
        self.progress = Progress()
        self.stopped_early = False
        self._task, self._base, self._producer, self._config = task, task.base, producer, config
        self._examples, self._held_out = rows.training, rows.held_out
        self._folder, self._inputs, self._observer = folder, inputs, observer
        self._total = int(config.steps or 1)
        self._validate_every = config.validate_every or max(1, self._total // 10)
        self._checkpoint_every = config.checkpoint_every or max(1, self._total // 10)
        self._accelerator = accelerator
        self._processes = Processes(accelerator)
        late = reads_late(self._base.device, self._processes.count)
        groups = producer.groups()
        self._parameters = [parameter for group in groups for parameter in group.parameters]
        peak = float(config.lr or 0)
        self._optimizer = torch.optim.AdamW(
            [{"params": group.parameters, "factor": (group.lr or peak) / peak} for group in groups],
            lr=peak, weight_decay=config.weight_decay, fused=True if late else None,
        )  # fmt: skip
        self._late = late
        self._unread: Unread | None = None
        self._reported = 0.0
        self._signals = Signals(impatient=self._processes.count == 1)

    def __enter__(self) -> Loop:
        self._processes.write(lambda: start_trackers(self._accelerator, self._config, self._folder.path))
        self._signals.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._signals.__exit__()
        for tracker in self._accelerator.trackers:  # end_training would also end the process group
            tracker.finish()

    def prepare(self, checkpoint: Path | None) -> None:
        """Go on from `checkpoint`, or validate and save the prefix at step 0."""
        if checkpoint is not None:
            self.progress = load_checkpoint(checkpoint, self._producer, self._optimizer)
            self._processes.write(lambda: self._folder.mend(self.progress.step, self.progress.validated))
            if self._validation_due():  # the run was stopped between an update and its validation
                self._validate()
        else:
            self._validate()
            self._save()

    def run(self) -> None:
        """All remaining updates."""
        config, first = self._config, self.progress.step
        order = order_of(self._task, self._examples, config, first)
        with checkpointed_layers(self._base, config.activation_checkpointing):
            for step, indices in zip(range(first + 1, self._total + 1), order, strict=False):
                if self._out_of_patience():
                    self.stopped_early = True
                    break
                self._update(step, [self._examples[index] for index in indices])
                if self._validation_due():
                    self._read()
                    self._validate()
                if step == self._total or step in self._every() or self._out_of_patience():
                    self._read()
                    self._save()

    def _every(self) -> range:
        return range(self._checkpoint_every, self._total + 1, self._checkpoint_every)

    def _update(self, step: int, examples: list[Any]) -> None:
        """One optimizer step over `examples`, in `accumulation` parts; the loss is the mean over all
        target tokens of the step, whichever part or process they are in."""
        began, config = time.perf_counter(), self._config
        rate = learning_rate(step, self._total, float(config.lr or 0), config.warmup, config.final_lr, config.scheduler)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        count = sum(self._task.units(example) for example in examples)
        own = self._processes.share(examples)
        losses: list[Any] = []
        for part in _parts(own, config.accumulation):
            if self._processes.count == 1 and self._signals.received is not None:
                self._stop(self._signals.received)
            losses.append(self._backward(part, count) if part else self._idle(examples[0]))
        unread = Unread(step, examples, rate, count, began)
        if self._late:
            self._update_late(unread, sum(losses))
            return
        loss, *signals = self._processes.sum_gradients(self._parameters, [sum(map(float, losses)), *self._asked()])
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, config.clip)
        self._require_finite(unread, loss, float(norm))
        self._apply(step)
        self._report(unread, loss)
        self._stop_if(signals)

    def _update_late(self, unread: Unread, loss: Tensor) -> None:
        """Update without waiting for the device; the loss of the step before is read meanwhile."""
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._config.clip)
        unread = unread._replace(later=Later(loss, norm))
        self._read()
        guard(self._optimizer, loss, norm)
        self._apply(unread.step)
        self._unread = unread
        self._stop_if(self._asked())

    def _read(self) -> None:
        """Report the step that is still unread, if any."""
        unread, self._unread = self._unread, None
        if unread is not None and unread.later is not None:
            loss, norm = unread.later.read()
            self._require_finite(unread, loss, norm)
            self._report(unread, loss)

    def _apply(self, step: int) -> None:
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.progress = dataclasses.replace(self.progress, step=step)

    def _report(self, unread: Unread, loss: float) -> None:
        began, self._reported = max(unread.began, self._reported), time.perf_counter()  # a late one overlaps the next
        speed = round(unread.tokens / (self._reported - began), 2)
        row = {"step": unread.step, "loss": loss, "learning_rate": unread.rate, "tokens_per_second": speed}
        self._log(row)
        if self._observer is not None:
            self._observer.updated(row)

    def _backward(self, examples: list[Any], count: int) -> Tensor:
        with self._autocast():
            loss = self._task.losses(self._producer(), examples).sum() / count
        torch.autograd.backward(loss)
        return loss.detach()

    def _idle(self, example: Any) -> float:
        """A part without rows. Where the base is sharded this process's share of it is needed all the same."""
        if self._config.shard_base:
            with self._autocast():
                loss = self._task.losses(self._producer(), [example]).sum() * 0.0
            torch.autograd.backward(loss)
        return 0.0

    def _autocast(self) -> Any:
        wanted = self._config.mixed_precision == "bf16"
        return torch.autocast(self._base.device.type, dtype=torch.bfloat16, enabled=wanted)

    def _validation_due(self) -> bool:
        step = self.progress.step
        return self.progress.validated < step and (step in (0, self._total) or step in self._validations())

    def _validations(self) -> range:
        return range(self._validate_every, self._total + 1, self._validate_every)

    def _validate(self) -> None:
        """Measure the prefix as it would be stored; keep it in prefix/ if it is the best so far."""
        prefix, part = self._finished(), (self._processes.rank, self._processes.count)
        with self._autocast():
            sums = summed_loss(
                self._task,
                self._held_out,
                prefix,
                self._config.batch_size,
                lambda _: self._stop_if(self._agreed()),
                part,
            )
        total, count = self._processes.sum(*sums)
        loss, step = total / count, self.progress.step
        if not math.isfinite(loss):
            raise NonFiniteError(f"step {step}: the validation loss is not finite ({loss})")
        row = {"step": step, "validation_loss": loss}
        self._log(row)
        best, progress = self.progress.best_loss, dataclasses.replace(self.progress, validated=step)
        if best is None or loss < best:
            self.progress = dataclasses.replace(progress, best_loss=loss, best_step=step, stale=0)
            self._processes.write(lambda: self._keep(prefix))
        else:
            self.progress = dataclasses.replace(progress, stale=progress.stale + 1)
        if self._observer is not None:
            self._observer.validated(row)

    def _keep(self, prefix: Prefix) -> None:
        """Save the best so far: the prefix, beside it the task's head, and the adapter if one is trained."""
        if self._task.name != "lm":
            save_task(self._task, self._folder.head)
        if self._config.train != "prefix":
            save_lora(self._base.model, self._folder.lora)
            prefix = dataclasses.replace(
                prefix, base=dataclasses.replace(prefix.base, weights=self._base.weights_hash())
            )
        prefix.with_record(self._config.method, self._record()).save(self._folder.prefix)

    def _finished(self) -> Prefix:
        return self._producer.finish().to(getattr(torch, self._config.prefix_dtype), "cpu")

    def _record(self) -> dict[str, Any]:
        return {
            "template": self._config.template,
            "step": self.progress.step,
            "validation_loss": self.progress.best_loss,
            "training_rows": len(self._examples),
            "trained_parameters": sum(parameter.numel() for parameter in self._parameters),
            "config": to_dict(self._config),
        }

    def _save(self) -> None:
        folder, config = self._folder.checkpoints, to_dict(self._config)

        def write() -> None:
            save_checkpoint(folder, self._producer, self._optimizer, self.progress, config, self._inputs)
            prune(folder, self._config.keep_checkpoints)

        self._processes.write(write)

    def _out_of_patience(self) -> bool:
        patience = self._config.patience
        return patience is not None and self.progress.stale >= patience

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
        self._read()
        self._optimizer.zero_grad(set_to_none=True)
        self._save()
        self._processes.wait()
        raise InterruptedRunError(
            f"stopped by {WATCHED[WATCHED.index(number)].name} after step {self.progress.step} of {self._total}; "
            f"the run is saved, go on with --resume {self._folder.path}",
            number,
        )

    def _require_finite(self, unread: Unread, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what, step = "gradient" if math.isfinite(loss) else "loss", unread.step
        self._optimizer.zero_grad(set_to_none=True)
        self._log({"step": step, "not_finite": what})
        rows = ", ".join(example.where for example in unread.examples)
        raise NonFiniteError(
            f"step {step}: the {what} is not finite; no update was made (rows {rows}). "
            f"The best prefix so far is in {self._folder.prefix}; a lower learning rate than {self._config.lr:g} may help"
        )

    def _log(self, row: dict[str, Any]) -> None:
        self._processes.write(lambda: self._folder.append(row))
        numbers = {name: value for name, value in row.items() if name != "step" and isinstance(value, float)}
        if self._processes.main and self._accelerator.trackers and numbers:
            self._accelerator.log(numbers, step=row["step"])


def _parts(examples: list[Any], count: int) -> Iterator[list[Any]]:
    """`count` parts of nearly equal size, some empty where there are fewer rows."""
    for number in range(count):
        yield examples[number * len(examples) // count : (number + 1) * len(examples) // count]
