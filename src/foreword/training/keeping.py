"""What a run keeps: the best prefix, with the head and the LoRA beside it, and checkpoints to go on from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from foreword import plugins
from foreword.config import TrainConfig
from foreword.methods import METHODS
from foreword.models.lora import save_lora
from foreword.objectives import OBJECTIVES
from foreword.prefix import Prefix
from foreword.settings import to_dict
from foreword.tasks import Task
from foreword.tasks.saved import save_task
from foreword.training.checkpoint import RunState, prune, save_checkpoint
from foreword.training.folder import RunFolder
from foreword.training.trained import Trained

OnSaved = Callable[[str, Path], None]  # what was saved, and where


class Keeper:
    """Saves into a run's folder. rows: training rows, for the record. inputs: digests of what the run was given."""

    def __init__(
        self,
        task: Task[Any],
        trained: Trained,
        config: TrainConfig,
        folder: RunFolder,
        *,
        rows: int,
        inputs: dict[str, str],
    ) -> None:
        self._task, self._trained, self._config, self._folder = task, trained, config, folder
        self._rows, self._inputs = rows, inputs

    def best(self, prefix: Prefix, state: RunState, on_saved: OnSaved) -> None:
        """Save the best so far: the prefix, beside it the task's head, and the LoRA if one is trained."""
        if self._task.name != "lm":
            on_saved("head", save_task(self._task, self._folder.head))
        if self._config.train != "prefix":
            base = self._task.base
            on_saved("lora", save_lora(base.model, self._folder.lora))
            fingerprint = dataclasses.replace(prefix.base, weights=base.weights_hash())
            prefix = dataclasses.replace(prefix, base=fingerprint)
        recorded = prefix.with_record(self._config.method, self._record(state))
        on_saved("prefix", recorded.save(self._folder.prefix))

    def checkpoint(self, optimizer: torch.optim.Optimizer, state: RunState) -> Path:
        """Save a checkpoint, and remove those that are too old."""
        config = to_dict(self._config)
        path = save_checkpoint(self._folder.checkpoints, self._trained, optimizer, state, config, self._inputs)
        prune(self._folder.checkpoints, self._config.keep_checkpoints)
        return path

    def _record(self, state: RunState) -> dict[str, Any]:
        config = self._config
        origins = {
            "method": plugins.origin("foreword.methods", METHODS, config.method),
            "objective": plugins.origin("foreword.objectives", OBJECTIVES, config.objective),
        }
        plugged = {name: package for name, package in origins.items() if package is not None}
        return {
            "template": config.template,
            "step": state.step,
            "validation_loss": state.best_loss,
            "training_rows": self._rows,
            "trained_parameters": sum(p.numel() for group in self._trained.groups() for p in group.parameters),
            "config": to_dict(config),
        } | ({"plugins": plugged} if plugged else {})
