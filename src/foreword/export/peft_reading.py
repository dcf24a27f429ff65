"""Read the two files of a PEFT adapter, and refuse what is damaged or no prefix before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from foreword.errors import ImportFormatError
from foreword.export.peft_layout import CONFIG, DTYPES, NAME, PICKLED, TENSORS
from foreword.files import Unreadable, read_json
from foreword.plain import shown
from foreword.prefix.value import FURTHEST
from foreword.tensorfiles import read_tensor_file, room

_CACHES, _PROMPTS = ("PREFIX_TUNING", "CARTRIDGE"), ("PROMPT_TUNING", "P_TUNING")
_TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
_SHAPE = ("num_layers", "num_attention_heads", "token_dim")
# Why the other prompt methods are no prefix. All else that PEFT has changes weights.
_REFUSED = {
    "LORA": "it changes weights; put it on the base with --lora FOLDER, or foreword.load(model, lora=FOLDER)",
    "MULTITASK_PROMPT_TUNING": "its prompt depends on the task of each row; a prefix is one prompt",
    "CPT": "its prompt is bound to the labels of its training examples",
    "ADAPTION_PROMPT": "its gates add to attention in a few layers; a prefix stands among the keys",
}


@dataclass(frozen=True)
class Adapter:
    """What `adapter_config.json` tells. kind: peft_type. length: virtual tokens. copies: num_transformer_submodules,
    which says how many times as many rows a prompt's table has. shape: the other sizes, each None if it isn't told.
    """

    folder: Path
    kind: str
    task: str | None
    length: int
    copies: int
    shape: Mapping[str, int | None]

    @property
    def file(self) -> Path:
        return self.folder / CONFIG

    @property
    def tensors(self) -> Path:
        return self.folder / TENSORS

    @property
    def is_cache(self) -> bool:
        """Whether the table holds keys and values, not input embeddings."""
        return self.kind in _CACHES


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the object in `adapter_config.json`. Raises `ImportFormatError`."""
    file = folder / CONFIG
    try:
        settings = read_json(file)
    except Unreadable as error:
        raise ImportFormatError(f"{file} {error}; save the adapter again with PEFT's save_pretrained") from error
    if not isinstance(settings, dict):
        raise ImportFormatError(f"{file} must hold an object, not {shown(settings)}")
    return settings


def read_adapter(folder: Path) -> Adapter:
    """Return what the adapter's settings tell. Raises `ImportFormatError`, which names the file and the field."""
    settings, file = read_settings(folder), folder / CONFIG
    kind, task = settings.get("peft_type"), settings.get("task_type")
    if not isinstance(kind, str) or kind not in _CACHES + _PROMPTS:
        known = (
            _REFUSED.get(kind, "it changes weights, or is not known here") if isinstance(kind, str) else "it is none"
        )
        raise ImportFormatError(
            f"{file}: peft_type is {shown(kind)}: {known}; read are {', '.join(_CACHES + _PROMPTS)}"
        )
    if task is not None and task not in _TASKS:
        raise ImportFormatError(
            f"{file}: task_type is {shown(task)}: its head was trained with it, and is no part of a prefix; read are "
            f"{' and '.join(_TASKS)}"
        )
    length, copies = _count(settings, "num_virtual_tokens", file), _count(settings, "num_transformer_submodules", file)
    if length is None:
        raise ImportFormatError(f"{file}: num_virtual_tokens is missing; it must be a whole number, 1 or more")
    copies = (2 if task == "SEQ_2_SEQ_LM" else 1) if copies is None else copies
    if copies > 2:
        raise ImportFormatError(f"{file}: num_transformer_submodules must be 1 or 2, not {copies:,}")
    return Adapter(folder, kind, task, length, copies, {name: _count(settings, name, file) for name in _SHAPE})


def _count(settings: Mapping[str, Any], field: str, file: Path) -> int | None:
    value = settings.get(field)
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= FURTHEST:
        raise ImportFormatError(f"{file}: {field} must be a whole number from 1 to {FURTHEST:,}, not {shown(value)}")
    return value


def read_table(adapter: Adapter, rows: int, width: int) -> Tensor:
    """Return `prompt_embeddings [rows, width]`. Raises `ImportFormatError`; a file of more bytes is not read."""
    _require_tensors(adapter)
    try:
        most = room({NAME: {"shape": (rows, width), "dtype": "float32"}})
        tensors = read_tensor_file(adapter.tensors, most).tensors
    except Unreadable as error:
        raise ImportFormatError(
            f"{adapter.tensors} {error}; {NAME} must be {[rows, width]} and alone in it: trained layers can't "
            "be part of a prefix"
        ) from error
    if set(tensors) != {NAME}:
        names = ", ".join(sorted(tensors)[:3]) or "nothing"
        raise ImportFormatError(
            f"{adapter.tensors} must hold {NAME} and no more, but it holds {names:.200}; trained layers of the base "
            "can't be part of a prefix"
        )
    table = tensors[NAME]
    if tuple(table.shape) != (rows, width) or table.dtype not in DTYPES:
        kind = str(table.dtype).removeprefix("torch.")
        raise ImportFormatError(
            f"{adapter.tensors}: {NAME} is {kind} {list(table.shape)}, but must be float32, bfloat16 or float16 "
            f"{[rows, width]}"
        )
    return table


def _require_tensors(adapter: Adapter) -> None:
    if os.path.exists(adapter.tensors):
        return
    if os.path.exists(adapter.folder / PICKLED):
        raise ImportFormatError(
            f"{adapter.folder / PICKLED} is a pickle, which can run code and is not read; load it with PEFT where you "
            "trust it, and save it with save_pretrained(folder, safe_serialization=True)"
        )
    raise ImportFormatError(f"{adapter.tensors} is missing; save the adapter again with PEFT's save_pretrained")
