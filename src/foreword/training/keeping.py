"""What a run keeps: the best prefix, with the head and the LoRA beside it, and checkpoints to go on from."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from foreword import plugins
from foreword.config import TrainConfig
from foreword.methods import METHODS
from foreword.models.lora import save_lora
from foreword.objectives import OBJECTIVES
from foreword.prefix import Prefix
from foreword.prefix.places import located
from foreword.prefix.records import data_name, file_name, public_prefix, public_settings, text_digest
from foreword.prefix.stored import read_manifest
from foreword.settings import to_dict
from foreword.tasks import Task
from foreword.tasks.saved import save_task
from foreword.training.checkpoint import RunState, prune, save_checkpoint
from foreword.training.folder import RunFolder
from foreword.training.trained import Trained

SHARE = 0.1  # of the time, that checkpoints may take where it is left open how many there are
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
        self._origins = _texts_and_folders(config)
        self._began = time.perf_counter()
        self._spent = self._last = 0.0  # seconds: in all checkpoints but the first, and in the newest

    def best(self, prefix: Prefix, state: RunState, on_saved: OnSaved) -> None:
        """Save the best so far: the prefix, beside it the task's head, and the LoRA if one is trained."""
        if self._task.name != "lm":
            on_saved("head", save_task(self._task, self._folder.head))
        if self._config.train != "prefix":
            base = self._task.base
            on_saved("lora", save_lora(base.model, self._folder.lora))
            fingerprint = dataclasses.replace(prefix.base, weights=base.weights_hash())
            prefix = dataclasses.replace(prefix, base=fingerprint)
        recorded = public_prefix(prefix).with_record(self._config.method, self._record(state))
        on_saved("prefix", recorded.save(self._folder.prefix))

    def checkpoint(self, optimizer: torch.optim.Optimizer, state: RunState) -> Path:
        """Save a checkpoint, and remove those that are too old."""
        began = time.perf_counter()
        config = to_dict(self._config)
        path = save_checkpoint(self._folder.checkpoints, self._trained, optimizer, state, config, self._inputs)
        prune(self._folder.checkpoints, self._config.keep_checkpoints)
        ended = time.perf_counter()
        if self._last == 0.0:
            self._began = ended  # training begins after the first
        else:
            self._spent += ended - began
        self._last = ended - began
        return path

    def is_cheap(self) -> bool:
        """Whether checkpoints take at most a tenth of the time, with one more."""
        return self._spent + self._last <= SHARE * (time.perf_counter() - self._began)

    def _record(self, state: RunState) -> dict[str, Any]:
        config = self._config
        origins = {
            "method": plugins.origin("foreword.methods", METHODS, config.method),
            "objective": plugins.origin("foreword.objectives", OBJECTIVES, config.objective),
        }
        plugged = {name: package for name, package in origins.items() if package is not None}
        some = {"rendering": self._task.rendering(), "plugins": plugged}
        return {
            "template": config.template,
            "step": state.step,
            "validation_loss": state.best_loss,
            "training_rows": self._rows,
            "trained_parameters": sum(p.numel() for group in self._trained.groups() for p in group.parameters),
            "data": _data(config, self._rows, self._inputs),
            "config": public_settings(to_dict(config)),
            **self._origins,
        } | {name: told for name, told in some.items() if told}


def _data(config: TrainConfig, rows: int, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Names of the files without their places, and digests of the rows. A validation without name was held out."""
    return {
        "training": {"name": _names(config, "data"), "rows": rows, "digest": inputs.get("data")},
        "validation": {"name": _names(config, "validation"), "digest": inputs.get("validation")},
    }


def _names(config: TrainConfig, field: str) -> Any:
    """The name of a source, or of each task's; None where there is none."""
    if config.mixture:
        sources = {task: values.get(field) for task, values in config.mixture.items()}
    else:
        sources = {"": getattr(config, field)}
    names = {task: data_name(source) if source else None for task, source in sources.items()}
    return names if config.mixture else names[""]


def _texts_and_folders(config: TrainConfig) -> dict[str, Any]:
    """What stands in a record for the text and the folders that a run began from."""
    told: dict[str, Any] = {}
    if config.init_text is not None:
        told["init_text"] = text_digest(config.init_text)
    if config.init == "prefix" and config.init_prefix is not None:
        with located(config.init_prefix) as folder:
            told["init_prefix"] = {"digest": read_manifest(Path(folder))["digest"]}
    if config.init_head is not None:
        told["init_head"] = {"name": file_name(config.init_head)}
    if config.lora is not None:
        told["lora"] = {"name": file_name(config.lora)}
    return told
