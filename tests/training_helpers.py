"""Small training runs on a tiny model, and comparing what they leave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import foreword
from foreword.training.checkpoint import list_checkpoints

WORDS = ["red", "green", "blue", "grey", "pink", "gold", "teal", "plum"]


def write_rows(folder: Path, uneven: bool = False) -> Path:
    """train.jsonl with 24 rows and valid.jsonl with 6; uneven: targets of one to four words."""
    for name, count in (("train", 24), ("valid", 6)):
        targets = [" ".join(WORDS[(i + k) % 8] for k in range(1 + (i % 4 if uneven else 0))) for i in range(count)]
        lines = [json.dumps({"input": f"{name[0]}{i}", "target": target}) for i, target in enumerate(targets)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def settings(rows: Path, name: str = "run", **changes: Any) -> foreword.TrainConfig:
    values: dict[str, Any] = {
        "data": str(rows / "train.jsonl"), "validation": str(rows / "valid.jsonl"), "template": "{input}=",
        "length": 4, "steps": 12, "batch_size": 6, "warmup": 2, "lr": 0.05, "validate_every": 4, "checkpoint_every": 4,
        "keep_checkpoints": 10, "trackers": (), "prefix_dtype": "float32", "output": str(rows / name),
    }  # fmt: skip
    return foreword.TrainConfig(**(values | changes))


def tensors(prefix: foreword.Prefix) -> dict[str, torch.Tensor]:
    return dict(prefix.tensors())


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def final_state(run: Path) -> dict[str, torch.Tensor]:
    """Parameters, optimizer and random generators of the newest checkpoint."""
    return load_file(list_checkpoints(run / "checkpoints")[-1] / "state.safetensors")


def untimed(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "tokens_per_second"} for row in history]


def history_of(run: Path) -> list[dict[str, Any]]:
    return untimed([json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()])


def copy_until(run: Path, target: Path, step: int) -> Path:
    """A copy of `run` as it was when the checkpoint of `step` was the newest."""
    shutil.copytree(run, target)
    for later in list_checkpoints(target / "checkpoints"):
        if int(later.name[5:]) > step:
            shutil.rmtree(later)
    return target


def debris(run: Path) -> list[Path]:
    """Files and folders that an unfinished write left."""
    return [path for path in run.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]
