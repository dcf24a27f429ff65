"""Run by every process of a launch: trains one job after another and writes what this process saw.

accelerate launch --multi_gpu --num_processes 2 tests/distributed/jobs.py FOLDER
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

import foreword
from foreword.base import Base
from foreword.errors import StorageError
from foreword.models.weights import hash_parameters
from foreword.tasks import Predictions, lm
from foreword.training import keeping
from foreword.training.checkpoint import save_checkpoint
from foreword.training.folder import RunFolder
from tiny import byte_tokenizer, tiny_model
from training_helpers import settings

JOBS: dict[str, dict[str, Any]] = {
    "plain": {"batch_size": 5},
    "accumulated": {"batch_size": 7, "accumulation": 2},
    "fewer rows than processes": {"batch_size": 1, "accumulation": 1},
    "mlp": {"batch_size": 5, "method": "mlp", "lr": 1e-3, "trackers": ("tensorboard",)},
    "checkpointed": {"batch_size": 5, "activation_checkpointing": True},
    "resumed": {"batch_size": 5},
}
COMMON: dict[str, Any] = {"steps": 10, "checkpoint_every": 1, "validate_every": 5, "keep_checkpoints": 99}


def with_heads(folder: Path, name: str) -> foreword.TrainConfig:
    """Two data sets, a head each, in batches so small that often one of them has no row in it."""
    part = {
        "task": "seq-cls", "data": str(folder / "train.jsonl"), "validation": str(folder / "valid.jsonl"),
        "input_field": "input", "target_field": "target",
    }  # fmt: skip
    changes = {"data": "", "validation": None, "template": None, "mixture": {"one": part, "other": part}}
    return settings(folder, name, **COMMON, **changes, batch_size=2)


def make_base(dtype: torch.dtype = torch.float64) -> Base:
    torch.set_num_threads(1)
    return Base(tiny_model("llama", dtype=dtype), byte_tokenizer(), name="tiny-llama")


def watched(real, seen: list):
    def collate(examples, *more):
        if torch.is_grad_enabled():  # not in a validation
            seen.append([example.where for example in examples])
        return real(examples, *more)

    return collate


def main(folder: Path) -> None:
    rank, real = int(os.environ["RANK"]), lm.collate
    report: dict[str, Any] = {}
    base = make_base()
    for name, changes in JOBS.items():
        seen: list = []
        lm.collate = watched(real, seen)
        more = {"resume": str(folder / "to resume")} if name == "resumed" else {}
        result = foreword.train(base, settings(folder, name, **COMMON, **changes, **more))
        report[name] = {"rows": seen, "loss": result.validation_loss, "steps": result.steps}
    lm.collate = real
    foreword.train(base, with_heads(folder, "heads"))
    report["taken"] = error_of(lambda: foreword.train(base, settings(folder, "plain", **COMMON)))
    report["in use"] = error_of(lambda: train_in_a_held_folder(base, folder))
    report["nan"] = error_of(lambda: train_with_nan_on(1, base, folder))
    report["signal"] = error_of(lambda: train_with_signal_on(1, base, folder))
    report["disk"] = error_of(lambda: train_with_full_disk(base, folder))
    report["after"] = error_of(lambda: foreword.train(base, settings(folder, "after", batch_size=5, **COMMON)))
    report["sharded"] = sharded(base, folder, real)
    (folder / f"rank{rank}.json").write_text(json.dumps(report))


def error_of(action) -> list[str]:
    try:
        action()
    except foreword.ForewordError as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def train_in_a_held_folder(base: Base, folder: Path) -> None:
    """Another run is going on where these two processes would write."""
    held = RunFolder(folder / "held")
    if os.environ["RANK"] == "0":
        held.path.mkdir()
        held.hold()
    try:
        foreword.train(base, settings(folder, "held", **COMMON))
    finally:
        if os.environ["RANK"] == "0":
            held.release()


def train_with_nan_on(rank: int, base: Base, folder: Path) -> None:
    real, calls = Predictions.target_losses, []

    def poisoned(*arguments):
        calls.append(torch.is_grad_enabled())
        bad = int(os.environ["RANK"]) == rank and sum(calls) == 3
        return real(*arguments) * (float("nan") if bad else 1.0)

    with mock.patch.object(Predictions, "target_losses", poisoned):
        foreword.train(base, settings(folder, "nan", batch_size=5, **COMMON))


def train_with_signal_on(rank: int, base: Base, folder: Path) -> None:
    real, calls = Predictions.target_losses, []

    def signalled(*arguments):
        calls.append(torch.is_grad_enabled())
        if int(os.environ["RANK"]) == rank and sum(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with mock.patch.object(Predictions, "target_losses", signalled):
        foreword.train(base, settings(folder, "signal", batch_size=5, **COMMON))


def train_with_full_disk(base: Base, folder: Path) -> None:
    """The main process can't write its third checkpoint."""
    real, calls = save_checkpoint, []

    def full(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise StorageError("checkpoints can't be written: No space left on device")
        return real(*arguments)

    with mock.patch.object(keeping, "save_checkpoint", full):
        foreword.train(base, settings(folder, "disk", batch_size=5, **COMMON))


def sharded(base: Base, folder: Path, real) -> dict:
    """The same run with the frozen weights spread over the processes; how many of them this one holds."""
    before = sum(parameter.numel() for parameter in base.model.parameters())
    result = foreword.train(
        base, settings(folder, "sharded", batch_size=7, accumulation=2, shard_base=True, samples=2, **COMMON)
    )
    held = sum(parameter.to_local().numel() for parameter in base.model.parameters())
    small = settings(folder, "sharded, one row", batch_size=1, shard_base=True, **COMMON)
    foreword.train(base, small)
    quantised = Base(int8_model(), byte_tokenizer(), name="int8")
    refused = error_of(lambda: foreword.train(quantised, settings(folder, "int8", shard_base=True, **COMMON)))
    return {"refused": refused, "loss": result.validation_loss, "before": before, "held": held}


def int8_model():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = tiny_model("llama")
    quantize_(model, Int8WeightOnlyConfig())
    return model


if __name__ == "__main__":
    if "RANK" in os.environ:
        main(Path(sys.argv[1]))
    else:
        print(hash_parameters(make_base().model))
