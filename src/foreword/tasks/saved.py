"""A trained task, saved next to its prefix: the folder `head/` with `head.safetensors` and `head.json`.

It holds what evaluation needs to make the same task again: name, labels, options and fields, and the tensors of the
head if there is one. A mixture has one entry per task.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from foreword.errors import ConfigError, PrefixFormatError
from foreword.files import new_folder, write_json
from foreword.tasks.base import Task
from foreword.tasks.mixture import Mixture

FORMAT, VERSION = "foreword-head", 1
TENSORS, MANIFEST = "head.safetensors", "head.json"
ONLY = "task"  # the name of a run's single task


def save_task(task: Task[Any], folder: Path) -> Path:
    """Write the task to `folder`, atomically. Raises `StorageError`."""
    tasks = task.tasks if isinstance(task, Mixture) else {ONLY: task}
    tensors = {
        f"{name}.{key}": tensor.detach().cpu().contiguous()
        for name, entry in tasks.items()
        if entry.head is not None
        for key, tensor in entry.head.state_dict().items()
    }
    with new_folder(folder) as temporary:
        save_file(tensors, temporary / TENSORS)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "tasks": {name: entry.state() | {"template": entry.template} for name, entry in tasks.items()},
            "digest": "sha256:" + hashlib.sha256((temporary / TENSORS).read_bytes()).hexdigest(),
        }
        write_json(temporary / MANIFEST, manifest)
    return folder


def read_states(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    """Return (state of each task by name, tensors) of a saved folder. Raises `PrefixFormatError`."""
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT or manifest["version"] != VERSION:
            raise PrefixFormatError(f"{file}: not a saved head of version {VERSION}")
        digest = "sha256:" + hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
        if digest != manifest["digest"]:
            raise PrefixFormatError(f"{folder / TENSORS}: digest differs from {MANIFEST}; it was changed or damaged")
        tensors = load_file(folder / TENSORS)
        states = {str(name): dict(state) for name, state in manifest["tasks"].items()}
        return states, tensors
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise PrefixFormatError(f"{folder} is not a saved head: {error}") from error


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
    if (Path(head) / MANIFEST).is_file():
        return Path(head), None
    path, colon, name = head.rpartition(":")
    return (Path(path), name) if colon and path else (Path(head), None)
