"""The loop: batches in seeded order, AdamW, validation, checkpoints, and nothing applied that isn't finite."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from foreword.config import TrainConfig, to_dict
from foreword.data import Example
from foreword.data.order import batches
from foreword.errors import ConfigError, NonFiniteError
from foreword.methods import Producer
from foreword.models import Base
from foreword.prefix import Prefix
from foreword.tasks.lm import collate, mean_loss, pad_id, target_losses
from foreword.training.checkpoint import Progress, load_checkpoint, prune, save_checkpoint
from foreword.training.folder import RunFolder
from foreword.training.schedule import learning_rate

if TYPE_CHECKING:
    from foreword.training.run import Observer


class Loop:
    """One run's state. `prepare` starts or resumes it, `run` takes it to the end."""

    def __init__(
        self,
        base: Base,
        producer: Producer,
        examples: list[Example],
        held_out: list[Example],
        config: TrainConfig,
        folder: RunFolder,
        inputs: dict[str, str],
        observer: Observer | None,
    ) -> None:
        self.progress = Progress()
        self.stopped_early = False
        self._base, self._producer, self._config = base, producer, config
        self._examples, self._held_out = examples, held_out
        self._folder, self._inputs, self._observer = folder, inputs, observer
        self._total = int(config.steps or 1)
        self._validate_every = config.validate_every or max(1, self._total // 10)
        self._checkpoint_every = config.checkpoint_every or max(1, self._total // 10)
        self._parameters = [parameter for parameter in producer.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=float(config.lr or 0), weight_decay=config.weight_decay
        )
        self._accelerator = _accelerator(base, config, folder.path)

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_: object) -> None:
        if self._accelerator.trackers:
            self._accelerator.end_training()

    def prepare(self, checkpoint: Path | None) -> None:
        """Go on from `checkpoint`, or validate and save the prefix at step 0."""
        if checkpoint is not None:
            self.progress = load_checkpoint(checkpoint, self._producer, self._optimizer)
            self._folder.forget_after(self.progress.step)
        else:
            self._validate()
            self._save()

    def run(self) -> None:
        """All remaining updates."""
        config, first = self._config, self.progress.step
        lengths = [example.num_tokens for example in self._examples]
        order = batches(lengths, config.batch_size, config.seed, start=first)
        with _checkpointed_layers(self._base, config.activation_checkpointing):
            for step, indices in zip(range(first + 1, self._total + 1), order, strict=False):
                if self._out_of_patience():
                    self.stopped_early = True
                    break
                self._update(step, [self._examples[index] for index in indices])
                self._after(step)

    def _update(self, step: int, examples: list[Example]) -> None:
        """One optimizer step over `examples`, in `accumulation` parts; the loss is the mean over all
        target tokens of the step, whichever part they are in."""
        began, config = time.perf_counter(), self._config
        rate = learning_rate(step, self._total, float(config.lr or 0), config.warmup, config.final_lr, config.scheduler)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        count = sum(len(example.target_ids) for example in examples)
        loss = sum(self._backward(part, count, step) for part in _parts(examples, config.accumulation))
        norm = self._accelerator.clip_grad_norm_(self._parameters, config.clip)
        if not bool(torch.isfinite(norm)):
            self._refuse("gradient", step, examples)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.progress = dataclasses.replace(self.progress, step=step)
        speed = count / (time.perf_counter() - began)
        row = {"step": step, "loss": loss, "learning_rate": rate, "tokens_per_second": round(speed, 2)}
        self._log(row)
        if self._observer is not None:
            self._observer.updated(row)

    def _backward(self, examples: list[Example], count: int, step: int) -> float:
        batch = collate(examples, pad_id(self._base), self._base.device)
        with self._accelerator.autocast(), self._base.attach(self._producer()):
            loss = target_losses(self._base, batch).sum() / count
        if not bool(torch.isfinite(loss)):
            self._refuse("loss", step, examples)
        self._accelerator.backward(loss)
        return float(loss.detach())

    def _after(self, step: int) -> None:
        last = step == self._total
        if last or step % self._validate_every == 0:
            self._validate()
        if last or step % self._checkpoint_every == 0 or self._out_of_patience():
            self._save()

    def _validate(self) -> None:
        """Measure the prefix as it would be stored; keep it in prefix/ if it is the best so far."""
        prefix = self._finished()
        with self._accelerator.autocast():
            loss, _ = mean_loss(self._base, self._held_out, prefix, self._config.batch_size)
        if not math.isfinite(loss):
            raise NonFiniteError(f"step {self.progress.step}: the validation loss is not finite ({loss})")
        row = {"step": self.progress.step, "validation_loss": loss}
        self._log(row)
        best = self.progress.best_loss
        if best is None or loss < best:
            self.progress = dataclasses.replace(self.progress, best_loss=loss, best_step=self.progress.step, stale=0)
            prefix.with_record(self._config.method, self._record()).save(self._folder.prefix)
        else:
            self.progress = dataclasses.replace(self.progress, stale=self.progress.stale + 1)
        if self._observer is not None:
            self._observer.validated(row)

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
        folder = self._folder.checkpoints
        save_checkpoint(folder, self._producer, self._optimizer, self.progress, to_dict(self._config), self._inputs)
        prune(folder, self._config.keep_checkpoints)

    def _out_of_patience(self) -> bool:
        patience = self._config.patience
        return patience is not None and self.progress.stale >= patience

    def _refuse(self, what: str, step: int, examples: list[Example]) -> NoReturn:
        rows = ", ".join(example.where for example in examples)
        raise NonFiniteError(
            f"step {step}: the {what} is not finite; no update was made (rows {rows}). "
            f"The best prefix so far is in {self._folder.prefix}; a lower learning rate than {self._config.lr:g} may help"
        )

    def _log(self, row: dict[str, Any]) -> None:
        self._folder.append(row)
        if self._accelerator.trackers:
            self._accelerator.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])


def _parts(examples: list[Example], count: int) -> Iterator[list[Example]]:
    size = -(-len(examples) // count)
    for start in range(0, len(examples), size):
        yield examples[start : start + size]


def check_trackers(names: tuple[str, ...]) -> None:
    """Raise `ConfigError` for a tracker that is not known or not installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError("trackers", f"{name!r} is not known; choose from {', '.join(LOGGER_TYPE_TO_CLASS)}")
        if name not in available:
            raise ConfigError("trackers", f"{name!r} is not installed: pip install {name}")


def _accelerator(base: Base, config: TrainConfig, folder: Path) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # a run before this one may have chosen another precision
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        cpu=base.device.type == "cpu",
        log_with=list(config.trackers) or None,
        project_dir=str(folder / "trackers") if config.trackers else None,
    )
    if config.trackers:
        accelerator.init_trackers("foreword")
    return accelerator


_RATES = ("dropout", "layerdrop", "attention_dropout", "activation_dropout", "residual_dropout", "embedding_dropout")


@contextmanager
def _checkpointed_layers(base: Base, wanted: bool) -> Iterator[None]:
    """Activation checkpointing on, without train mode elsewhere: the base's dropout stays off."""
    if not wanted:
        yield
        return
    model = base.model
    # Transformers before 5.20 has only the older names
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    enable({"use_reentrant": False})
    layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    # functional dropout asks its layer's own flag
    found = [(layer, name, layer.__dict__.get(name)) for layer in layers for name in _RATES]
    rates = [(layer, name, rate) for layer, name, rate in found if isinstance(rate, float)]
    for layer in layers:
        layer.training = True
    for layer, name, _ in rates:
        setattr(layer, name, 0.0)
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        for layer, name, rate in rates:
            setattr(layer, name, rate)
        disable()
