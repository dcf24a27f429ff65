"""Checkpoints: `step-000020/` with `state.safetensors` and `state.json`, complete or absent.

Tensors are the producer's parameters (`producer.*`), AdamW's state (`optimizer.<parameter>.<name>`)
and the random generators (`random.*`). No pickle.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from foreword.errors import CheckpointError
from foreword.files import new_folder, remove_folder, write_json
from foreword.methods import Producer

TENSORS = "state.safetensors"
STATE = "state.json"
VERSION = 3


@dataclass(frozen=True)
class Progress:
    """Where a run stands after `step` updates. stale: validations since the best one. validated: the
    step of the last one."""

    step: int = 0
    best_loss: float | None = None
    best_step: int = 0
    stale: int = 0
    validated: int = -1


def save_checkpoint(
    folder: Path,
    producer: Producer,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    config: dict[str, Any],
    inputs: dict[str, str],
) -> Path:
    """Write `folder`/step-N atomically and return its path. inputs: digests of what the run was given."""
    target = folder / f"step-{progress.step:06d}"
    tensors = _tensors(producer, optimizer)
    with new_folder(target) as temporary:
        save_file(tensors, temporary / TENSORS)
        digest = hashlib.sha256((temporary / TENSORS).read_bytes()).hexdigest()
        state = {
            "version": VERSION,
            "progress": asdict(progress),
            "config": config,
            "inputs": inputs,
            "digest": digest,
        }
        write_json(temporary / STATE, state)
    return target


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for old in list_checkpoints(folder)[:-keep]:
        remove_folder(old)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{STATE}"))


def step_of(path: Path) -> int:
    """The number of updates after which a checkpoint was made, from its name."""
    return int(path.name.removeprefix("step-"))


def find_checkpoint(path: Path) -> Path:
    """The checkpoint meant by `path`: itself, or the newest complete one of a run folder."""
    if (path / STATE).is_file():
        return path
    found = list_checkpoints(path / "checkpoints")
    if not found:
        raise CheckpointError(f"{path} is neither a checkpoint nor a run folder with a complete one")
    return found[-1]


def read_state(path: Path) -> tuple[Progress, dict[str, Any], dict[str, Any]]:
    """(progress, config, digests of inputs) of a checkpoint. Raises `CheckpointError` if it is damaged."""
    file = path / STATE
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        if state["version"] != VERSION:
            raise CheckpointError(f"{file}: version {state['version']!r} is not readable here (known: {VERSION})")
        if state["digest"] != hashlib.sha256((path / TENSORS).read_bytes()).hexdigest():
            raise CheckpointError(f"{path / TENSORS}: digest differs from {STATE}; the file was changed or damaged")
        return Progress(**state["progress"]), dict(state["config"]), dict(state["inputs"])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not a readable checkpoint: {error}") from error


def load_checkpoint(path: Path, producer: Producer, optimizer: torch.optim.Optimizer) -> Progress:
    """Put a checkpoint's tensors into `producer`, `optimizer` and the random generators."""
    progress, _, _ = read_state(path)
    try:
        tensors = load_file(path / TENSORS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path / TENSORS} can't be read: {error}") from error
    own = {name: tensor for name, tensor in tensors.items() if name.startswith("producer.")}
    try:
        producer.load_state_dict({name.removeprefix("producer."): tensor for name, tensor in own.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit this method: {' '.join(str(error).split())}") from error
    _restore_optimizer(tensors, producer, optimizer)
    _restore_random(tensors)
    return progress


def _tensors(producer: Producer, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {f"producer.{name}": tensor for name, tensor in producer.state_dict().items()}
    for name, parameter in producer.named_parameters():
        for part, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{part}"] = torch.as_tensor(value)
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"random.cuda.{index}"] = state
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _restore_optimizer(tensors: dict[str, Tensor], producer: Producer, optimizer: torch.optim.Optimizer) -> None:
    for name, parameter in producer.named_parameters():
        head = f"optimizer.{name}."
        found = {key.removeprefix(head): value for key, value in tensors.items() if key.startswith(head)}
        if found:
            # AdamW keeps its step count on the CPU unless it is fused, its moments beside the parameter and laid out
            # like it: a fused kernel goes by memory alone
            fused = any(group.get("fused") for group in optimizer.param_groups)
            optimizer.state[parameter] = {
                part: (value.to(parameter.device) if fused else value) if value.dim() == 0
                else torch.empty_like(parameter, dtype=value.dtype).copy_(value)
                for part, value in found.items()
            }  # fmt: skip


def _restore_random(tensors: dict[str, Tensor]) -> None:
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if (state := tensors.get(f"random.cuda.{index}")) is not None:
                torch.cuda.set_rng_state(state, index)
