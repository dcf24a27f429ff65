"""Checkpoints: `step-000020/` with `state.safetensors` and `state.json`, complete or absent.

Tensors are those of what is trained (`producer.*`, `head.*`, `lora.*`), AdamW's state (`optimizer.<parameter>.<name>`)
and the random generators (`random.*`). No pickle. Version 3, whose tensors had other names, is read too.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from foreword.errors import CheckpointError
from foreword.files import new_folder, remove_folder, write_json
from foreword.training.trained import Trained

TENSORS = "state.safetensors"
STATE = "state.json"
VERSION = 4
READABLE = (3, 4)
_NAME = re.compile("step-[0-9]{1,18}")


@dataclass(frozen=True)
class RunState:
    """Where a run stands after `step` updates. stale: validations since the best one. validated: the
    step of the last one."""

    step: int = 0
    best_loss: float | None = None
    best_step: int = 0
    stale: int = 0
    validated: int = -1


def save_checkpoint(
    folder: Path,
    trained: Trained,
    optimizer: torch.optim.Optimizer,
    state: RunState,
    config: dict[str, Any],
    inputs: dict[str, str],
) -> Path:
    """Write `folder`/step-N atomically and return its path. inputs: digests of what the run was given."""
    target = folder / f"step-{state.step:06d}"
    tensors = _tensors(trained, optimizer)
    with new_folder(target) as temporary:
        save_file(tensors, temporary / TENSORS)
        digest = hashlib.sha256((temporary / TENSORS).read_bytes()).hexdigest()
        manifest = {
            "version": VERSION,
            "progress": asdict(state),
            "config": config,
            "inputs": inputs,
            "digest": digest,
        }
        write_json(temporary / STATE, manifest)
    return target


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for old in list_checkpoints(folder)[:-keep]:
        remove_folder(old)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first. What has another name is none."""
    complete = [path.parent for path in folder.glob(f"step-*/{STATE}") if _NAME.fullmatch(path.parent.name)]
    return sorted(complete, key=lambda path: (step_of(path), path.name))


def step_of(path: Path) -> int:
    """The number of updates after which a checkpoint was made, from its name. Raises `CheckpointError`."""
    if not _NAME.fullmatch(path.name):
        raise CheckpointError(f"{path} has not the name of a checkpoint, such as step-000020")
    return int(path.name.removeprefix("step-"))


def find_checkpoint(path: Path) -> Path:
    """The checkpoint meant by `path`: itself, or the newest complete one of a run folder."""
    if (path / STATE).is_file():
        return path
    complete = list_checkpoints(path / "checkpoints")
    if not complete:
        raise CheckpointError(f"{path} is neither a checkpoint nor a run folder with a complete one")
    return complete[-1]


def read_state(path: Path) -> tuple[RunState, dict[str, Any], dict[str, Any]]:
    """(where the run stands, config, digests of inputs) of a checkpoint. Raises `CheckpointError` if it is damaged."""
    return _parsed(path, _manifest(path))


def _parsed(path: Path, manifest: dict[str, Any]) -> tuple[RunState, dict[str, Any], dict[str, Any]]:
    try:
        return RunState(**manifest["progress"]), dict(manifest["config"]), dict(manifest["inputs"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path / STATE}: not a readable checkpoint: {error}") from error


def _manifest(path: Path) -> dict[str, Any]:
    file = path / STATE
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest["version"] not in READABLE:
            known = ", ".join(map(str, READABLE))
            raise CheckpointError(f"{file}: version {manifest['version']!r} is not readable here (known: {known})")
        if manifest["digest"] != hashlib.sha256((path / TENSORS).read_bytes()).hexdigest():
            raise CheckpointError(f"{path / TENSORS}: digest differs from {STATE}; the file was changed or damaged")
        return dict(manifest)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not a readable checkpoint: {error}") from error


def load_checkpoint(path: Path, trained: Trained, optimizer: torch.optim.Optimizer) -> RunState:
    """Put a checkpoint's tensors into `trained`, `optimizer` and the random generators."""
    manifest = _manifest(path)
    state, _, _ = _parsed(path, manifest)
    try:
        tensors = load_file(path / TENSORS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path / TENSORS} can't be read: {error}") from error
    if manifest["version"] == 3:
        tensors = trained.from_version_3(tensors)
    parameters = {name: tensor for name, tensor in tensors.items() if not name.startswith(("optimizer.", "random."))}
    try:
        trained.load_state_dict(parameters)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit this method: {' '.join(str(error).split())}") from error
    _restore_optimizer(tensors, trained, optimizer)
    _restore_random(tensors)
    return state


def _tensors(trained: Trained, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = dict(trained.state_dict())
    for name, parameter in trained.named_parameters():
        for part, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{part}"] = torch.as_tensor(value)
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"random.cuda.{index}"] = state
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _restore_optimizer(tensors: dict[str, Tensor], trained: Trained, optimizer: torch.optim.Optimizer) -> None:
    for name, parameter in trained.named_parameters():
        head = f"optimizer.{name}."
        parts = {key.removeprefix(head): value for key, value in tensors.items() if key.startswith(head)}
        if parts:
            # AdamW keeps its step count on the CPU unless it is fused, its moments beside the parameter and laid out
            # like it: a fused kernel goes by memory alone
            fused = any(group.get("fused") for group in optimizer.param_groups)
            optimizer.state[parameter] = {
                part: (value.to(parameter.device) if fused else value) if value.dim() == 0
                else torch.empty_like(parameter, dtype=value.dtype).copy_(value)
                for part, value in parts.items()
            }  # fmt: skip


def _restore_random(tensors: dict[str, Tensor]) -> None:
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if (state := tensors.get(f"random.cuda.{index}")) is not None:
                torch.cuda.set_rng_state(state, index)
