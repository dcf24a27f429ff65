"""A trained task beside its prefix: the folder `head/` with `head.safetensors` and `head.json`.

It holds what evaluation needs to ask the same again: the task's name, labels, options and fields, and the tensors of its
head if it has one; for a mixture one entry per task.
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
    """Write `folder`, atomically. Raises `StorageError`."""
    tasks = task.tasks if isinstance(task, Mixture) else {ONLY: task}
    tensors = {
        f"{name}.{key}": tensor.detach().cpu().contiguous()
        for name, own in tasks.items()
        if own.head is not None
        for key, tensor in own.head.state_dict().items()
    }
    with new_folder(folder) as temporary:
        save_file(tensors, temporary / TENSORS)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "tasks": {name: own.state() | {"template": own.template} for name, own in tasks.items()},
            "digest": "sha256:" + hashlib.sha256((temporary / TENSORS).read_bytes()).hexdigest(),
        }
        write_json(temporary / MANIFEST, manifest)
    return folder


def read_states(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    """(state of each task by name, tensors) of a saved folder. Raises `PrefixFormatError`, saying what is wrong."""
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
    """The task meant: the only one, or the one called `name`. Raises `ConfigError`."""
    if name is None and len(states) == 1:
        return next(iter(states))
    if name is None or name not in states:
        raise ConfigError("head", f"{folder} holds {', '.join(states)}; name one of them after a colon")
    return name


def fill(task: Task[Any], state: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> None:
    """Put a saved task into `task`, which is one of the same kind. Raises `ConfigError` if it isn't."""
    if state.get("task") != task.name:
        raise ConfigError("head", f"was trained for {state.get('task')}, not {task.name}")
    task.restore(state)
    if task.head is not None:
        put(task, tensors, name)


def put(task: Task[Any], tensors: Mapping[str, Tensor], name: str) -> None:
    """Put a head's tensors into a task that has its own labels already. Raises `ConfigError` where they don't fit."""
    own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
    head = task.head
    if head is None:
        raise ConfigError("init_head", f"{task.name} trains no head")
    shapes = {key: tuple(value.shape) for key, value in head.state_dict().items()}
    if shapes != {key: tuple(value.shape) for key, value in own.items()}:
        raise ConfigError("init_head", f"its tensors {sorted(own)} don't fit a head of shapes {shapes}")
    with torch.no_grad():
        for key, value in head.state_dict().items():
            value.copy_(own[key])


def split_name(head: str) -> tuple[Path, str | None]:
    """`folder` or `folder:name`."""
    if (Path(head) / MANIFEST).is_file():
        return Path(head), None
    path, colon, name = head.rpartition(":")
    return (Path(path), name) if colon and path else (Path(head), None)
