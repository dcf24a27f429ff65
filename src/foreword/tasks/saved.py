"""A trained task, saved next to its prefix: the folder `head/` with `head.safetensors` and `head.json`.

It holds what evaluation needs to make the same task again: name, labels, options and fields, and the tensors of the
head if there is one. A mixture has one entry per task.

Version 2 is written: `content` is the digest of head.safetensors, `digest` that of all of head.json. Version 1 is read;
its `digest` is the `content` of now.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from foreword.errors import ConfigError, PrefixError, PrefixFormatError
from foreword.files import Unreadable, new_folder, write_json
from foreword.folders import reread
from foreword.sealing import note_old_format, read_sealed, sealed
from foreword.tasks.base import Task
from foreword.tasks.mixture import Mixture
from foreword.tensorfiles import file_digest
from foreword.versions.opening import files_of

FORMAT, VERSION = "foreword-head", 2
READABLE = (1, 2)
TENSORS, MANIFEST = "head.safetensors", "head.json"
ONLY = "task"  # the name of a run's single task
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_MOST_LABELS = 4096  # without a tensor that has a row for each


def save_task(task: Task[Any], folder: Path) -> Path:
    """Write the task to `folder`, atomically. Raises `StorageError`; `PrefixError` if it could not be read again."""
    tasks = task.tasks if isinstance(task, Mixture) else {ONLY: task}
    tensors = {
        f"{name}.{key}": tensor.detach().cpu().contiguous()
        for name, entry in tasks.items()
        if entry.head is not None
        for key, tensor in entry.head.state_dict().items()
    }
    states = {name: entry.state() | {"template": entry.template} for name, entry in tasks.items()}
    with new_folder(folder) as temporary:
        save_file(tensors, temporary / TENSORS, metadata={"version": str(VERSION)})
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "tasks": states,
            "bytes": (temporary / TENSORS).stat().st_size,
            "content": f"sha256:{file_digest(temporary / TENSORS)}",
        }
        try:
            write_json(temporary / MANIFEST, sealed(manifest))
        except Unreadable as error:
            raise PrefixError(f"{folder / MANIFEST} {error}") from error
    return folder


def read_states(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    """Return (state of each task by name, tensors) of a saved folder. Raises `PrefixFormatError`."""
    watched = folder, folder / MANIFEST, folder / TENSORS
    version, states, tensors = reread(watched, lambda: _read(folder), (PrefixFormatError,))
    if version < VERSION:
        note_old_format(folder / MANIFEST, "its tensors")
    return states, tensors


def _read(folder: Path) -> tuple[int, dict[str, dict[str, Any]], dict[str, Tensor]]:
    """Return (format version, state of each task, tensors)."""
    try:
        manifest, tensors = read_sealed(files_of(folder), MANIFEST, TENSORS, READABLE, "sha256:")
    except Unreadable as error:
        raise PrefixFormatError(f"{folder} is not a saved head: {error}") from error
    if manifest.get("format") != FORMAT:
        raise PrefixFormatError(f"{folder / MANIFEST}: 'format' must be {FORMAT!r}")
    states = manifest.get("tasks")
    if not isinstance(states, dict) or not states or not all(isinstance(state, dict) for state in states.values()):
        raise PrefixFormatError(f"{folder / MANIFEST}: 'tasks' must name at least one task, got {states!r:.60}")
    for name, state in states.items():
        _check_state(folder / MANIFEST, name, state, tensors)
    for key, tensor in tensors.items():
        if not any(key.startswith(f"{name}.") for name in states) or tensor.dtype not in _DTYPES:
            raise PrefixFormatError(f"{folder / TENSORS}: {key!r:.80} ({tensor.dtype}) is no tensor of its tasks")
    return manifest["version"], states, tensors


def _check_state(file: Path, name: str, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise `PrefixFormatError` unless a task can be made of `state`; entries that are not known are ignored."""
    kinds: dict[str, Any] = {
        "task": str, "labels": list, "options": dict, "input_field": str | None, "target_field": str | None,
        "template": str | None,
    }  # fmt: skip
    for field, kind in kinds.items():
        if not isinstance(value := state.get(field), kind) and field in state:
            raise PrefixFormatError(f"{file}: {field!r} of task {name!r:.40} can't be {value!r:.60}")
    labels = state.get("labels", [])
    if "task" not in state or not all(isinstance(label, str) for label in labels):
        raise PrefixFormatError(f"{file}: task {name!r:.40} must have a 'task', and 'labels' of text")
    rows = [tensor.shape[0] for key, tensor in tensors.items() if tensor.dim() and key.startswith(f"{name}.")]
    if len(labels) > max([_MOST_LABELS, *rows]):
        raise PrefixFormatError(f"{file}: task {name!r:.40} has {len(labels):,} labels, but no tensor of as many rows")


def choose(states: Mapping[str, dict[str, Any]], name: str | None, folder: Path) -> str:
    """Return the name of the only task, or `name` if it is a task of `folder`. Raises `ConfigError`."""
    if name is None and len(states) == 1:
        return next(iter(states))
    if name is None or name not in states:
        raise ConfigError("head", f"{folder} holds {', '.join(states)}; name one of them after a colon")
    return name


def fill(task: Task[Any], state: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> None:
    """Restore a saved task in `task`. Raises `ConfigError` if it is of another kind or its head doesn't fit."""
    if state.get("task") != task.name:
        raise ConfigError("head", f"was trained for {state.get('task')}, not {task.name}")
    task.restore(state)
    if task.head is not None:
        put(task, tensors, name)


def put(task: Task[Any], tensors: Mapping[str, Tensor], name: str) -> None:
    """Copy a saved head's tensors into the head of `task`, which must know its labels.

    Raises `ConfigError` if `task` has no head or one of other shapes.
    """
    saved = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
    head = task.head
    if head is None:
        raise ConfigError("init_head", f"{task.name} trains no head")
    shapes = {key: tuple(value.shape) for key, value in head.state_dict().items()}
    if shapes != {key: tuple(value.shape) for key, value in saved.items()}:
        raise ConfigError("init_head", f"its tensors {sorted(saved)} don't fit a head of shapes {shapes}")
    with torch.no_grad():
        for key, value in head.state_dict().items():
            value.copy_(saved[key])


def split_name(head: str) -> tuple[Path, str | None]:
    """Split `folder` or `folder:name` into (folder, name or None)."""
    if os.path.isfile(Path(head) / MANIFEST):
        return Path(head), None
    path, colon, name = head.rpartition(":")
    return (Path(path), name) if colon and path else (Path(head), None)
