"""Outcomes of proofs, in Foreword's cache folder: one file for each class, configuration and set of versions."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from foreword._version import __version__
from foreword.errors import StorageError
from foreword.files import Unreadable, cache_folder, read_json, write_json
from foreword.models.architectures import Architecture, Kind, Positions, Rotary

_MOST = 2**16  # bytes of an entry
_IRRELEVANT = {
    "_name_or_path", "name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "auto_map",
    "id2label", "label2id", "problem_type", "quantization_config",
}  # fmt: skip
_CHOICES = {"kind": Kind, "positions": Positions, "layout": Rotary}


@dataclass(frozen=True)
class Outcome:
    """architecture: what was verified; None if the model is refused. reason: which check failed, and by how much."""

    architecture: Architecture | None
    reason: str = ""


def identity(model: Any) -> dict[str, str] | None:
    """Return what an outcome depends on; None if it can't be told, and the outcome must not be remembered.

    For classes of other packages (code that came with a checkpoint) it includes a hash of their file.
    """
    import torch
    import transformers

    kind = type(model)
    try:
        values = {name: value for name, value in model.config.to_dict().items() if name not in _IRRELEVANT}
        settings = json.dumps(values, sort_keys=True, default=str)
        file = "" if kind.__module__.startswith("transformers.") else inspect.getsource(sys.modules[kind.__module__])
    except (OSError, TypeError, ValueError, KeyError, RecursionError):
        return None
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "code": hashlib.sha256(file.encode()).hexdigest(),
        "config": hashlib.sha256(settings.encode()).hexdigest(),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "foreword": __version__,
    }


def recall(key: Mapping[str, str] | None) -> Outcome | None:
    """Return the remembered outcome; None if there is none, or if its file is damaged."""
    if key is None:
        return None
    try:
        entry = read_json(_file(key), _MOST)
    except Unreadable:
        return None
    if not isinstance(entry, dict) or entry.get("key") != dict(key) or not isinstance(entry.get("reason"), str):
        return None
    if entry.get("architecture") is None:
        return Outcome(None, entry["reason"]) if entry["reason"] else None
    architecture = _architecture(entry["architecture"])
    return None if architecture is None else Outcome(architecture)


def store(key: Mapping[str, str] | None, outcome: Outcome) -> None:
    """Remember `outcome`. Without a writable cache it is found again the next time."""
    if key is None:
        return
    architecture = None if outcome.architecture is None else asdict(outcome.architecture)
    try:
        _file(key).parent.mkdir(parents=True, exist_ok=True)
        write_json(_file(key), {"key": dict(key), "architecture": architecture, "reason": outcome.reason})
    except (OSError, StorageError):
        return


def _file(key: Mapping[str, str]) -> Path:
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder() / "proofs" / f"{name}.json"


def _architecture(values: Any) -> Architecture | None:
    """Return the architecture that `values` describe; None if they are not what `store` writes."""
    if not isinstance(values, dict) or set(values) != {field.name for field in fields(Architecture)}:
        return None
    texts = values["attention"], values["limit"], values["route"]
    flags = [values[name] for name in ("per_call", "after_padding", "counts_mask", "recurrent", "packs", "verified")]
    also = values["also"]
    if values["route"] != "attention" or any(values[name] not in get_args(kinds) for name, kinds in _CHOICES.items()):
        return None
    sound = all(isinstance(text, str) for text in texts) and all(isinstance(flag, bool) for flag in flags)
    if not sound or not isinstance(also, list) or not all(isinstance(name, str) for name in also):
        return None
    return Architecture(**{**values, "also": tuple(also)})
