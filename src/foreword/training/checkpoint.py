"""Checkpoints: `step-000020/` with `state.safetensors` and `state.json`, complete or absent.

Tensors are those of what is trained (`producer.*`, `head.*`, `lora.*`), AdamW's state (`optimizer.<parameter>.<name>`)
and the random generators (`random.*`). No pickle. In version 5 `content` is the digest of state.safetensors, `digest`
that of all of state.json. Versions 3, whose tensors had other names, and 4 are read too: their `digest` is that of
state.safetensors.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from foreword.errors import CheckpointError
from foreword.files import FolderFiles, Unreadable, new_folder, remove_folder, write_json
from foreword.folders import reread
from foreword.sealing import note_old_format, read_sealed, sealed
from foreword.tensorfiles import file_digest
from foreword.training.trained import Trained

TENSORS = "state.safetensors"
STATE = "state.json"
VERSION = 5
READABLE = (3, 4, 5)
_NAME = re.compile("step-[0-9]{1,18}")
_ADAMW = {"step", "exp_avg", "exp_avg_sq"}


@dataclass(frozen=True)
class RunState:
    """Where a run stands after `step` updates. stale: validations since the best one. validated: the
    step of the last one."""

    step: int = 0
    best_loss: float | None = None
    best_step: int = 0
    stale: int = 0
    validated: int = -1

    @classmethod
    def from_manifest(cls, values: Any) -> RunState:
        """Make the state that a manifest holds; fields that a newer version has added are ignored.

        Raises `ValueError` for a value of another type.
        """
        if not isinstance(values, dict):
            raise ValueError(f"'progress' must be an object, got {values!r:.60}")
        known = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        for name, value in known.items():
            if name == "best_loss":
                valid = value is None or type(value) is float
            else:
                valid = type(value) is int and -1 <= value < 10**12
            if not valid:
                raise ValueError(f"progress.{name} can't be {value!r:.60}")
        return cls(**known)


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
        save_file(tensors, temporary / TENSORS, metadata={"version": str(VERSION)})
        manifest = {
            "version": VERSION,
            "progress": asdict(state),
            "config": config,
            "inputs": inputs,
            "bytes": (temporary / TENSORS).stat().st_size,
            "content": file_digest(temporary / TENSORS),
        }
        try:
            write_json(temporary / STATE, sealed(manifest))
        except Unreadable as error:
            raise CheckpointError(f"{target / STATE} {error}") from error
    return target


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for old in list_checkpoints(folder)[:-keep]:
        remove_folder(old)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first. What has another name is none."""
    try:
        complete = [path.parent for path in folder.glob(f"step-*/{STATE}") if _NAME.fullmatch(path.parent.name)]
    except (OSError, ValueError):  # no folder can have this name
        return []
    return sorted(complete, key=lambda path: (step_of(path), path.name))


def step_of(path: Path) -> int:
    """The number of updates after which a checkpoint was made, from its name. Raises `CheckpointError`."""
    if not _NAME.fullmatch(path.name):
        raise CheckpointError(f"{path} has not the name of a checkpoint, such as step-000020")
    return int(path.name.removeprefix("step-"))


def find_checkpoint(path: Path) -> Path:
    """The checkpoint meant by `path`: itself, or the newest complete one of a run folder."""
    if os.path.isfile(path / STATE):  # unlike pathlib's, it raises nothing
        return path
    complete = list_checkpoints(path / "checkpoints")
    if not complete:
        raise CheckpointError(f"{path} is neither a checkpoint nor a run folder with a complete one")
    return complete[-1]


def read_state(path: Path) -> tuple[RunState, dict[str, Any], dict[str, Any]]:
    """(where the run stands, config, digests of inputs) of a checkpoint. Raises `CheckpointError` if it is damaged."""
    return _parsed(path, _read(path)[0])


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return (manifest, tensors) of a checkpoint, with a note if its format is an older one."""
    state, tensors = path / STATE, path / TENSORS
    try:
        read = reread(
            (path, state, tensors), lambda: read_sealed(FolderFiles(path), STATE, TENSORS, READABLE), (Unreadable,)
        )
    except Unreadable as error:
        raise CheckpointError(f"not a readable checkpoint: {error}") from error
    if read[0]["version"] < VERSION:
        note_old_format(state, TENSORS)
    return read


def _parsed(path: Path, manifest: dict[str, Any]) -> tuple[RunState, dict[str, Any], dict[str, Any]]:
    try:
        state = RunState.from_manifest(manifest.get("progress"))
    except ValueError as error:
        raise CheckpointError(f"{path / STATE}: not a readable checkpoint: {error}") from error
    for name in ("config", "inputs"):
        if not isinstance(manifest.get(name), dict):
            raise CheckpointError(f"{path / STATE}: not a readable checkpoint: {name!r} must be an object")
    return state, manifest["config"], manifest["inputs"]


def load_checkpoint(path: Path, trained: Trained, optimizer: torch.optim.Optimizer) -> RunState:
    """Put a checkpoint's tensors into `trained`, `optimizer` and the random generators. Raises `CheckpointError`."""
    manifest, tensors = _read(path)
    state, _, _ = _parsed(path, manifest)
    if manifest["version"] == 3:
        tensors = trained.from_version_3(tensors)
    parameters = {name: tensor for name, tensor in tensors.items() if not name.startswith(("optimizer.", "random."))}
    try:
        trained.load_state_dict(parameters)
        _restore_optimizer(tensors, trained, optimizer)
        _restore_random(tensors)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: does not fit this method: {' '.join(str(error).split())}") from error
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
            if parts.keys() != _ADAMW or not all(value.is_floating_point() for value in parts.values()):
                raise ValueError(f"{head}… is not the state of AdamW")
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
