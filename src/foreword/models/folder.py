"""A model's folder, checked before Transformers gets it: regular files, of sizes that make sense together."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from foreword import files
from foreword.errors import ModelError

# What Transformers, PEFT, safetensors and gguf raise for files that they can't use
UNREADABLE = (
    OSError, ValueError, LookupError, RuntimeError, ImportError, TypeError, AttributeError, ArithmeticError,
    AssertionError, SafetensorError, StrictDataclassError, struct.error,
)  # fmt: skip
MOST_CONFIG = 4 * 2**20  # bytes; real ones have up to 1 MB, with thousands of classes
MOST_SMALL = 128 * 2**20  # bytes of a vocabulary; real ones have up to 40 MB
MOST_DEPTH = 32
MOST_LAYERS, FREE_LAYERS = 1_000, 64
GROWTH = 32  # bytes of a tensor in memory per byte of it in the files: 2 bits become 32, and room
FREE = 64 * 2**20  # bytes that any model may have
_SMALL, _WEIGHTS = (".json", ".txt", ".model", ".jinja"), (".safetensors", ".bin")
_CONFIGS = ("config.json", "generation_config.json", "adapter_config.json", "preprocessor_config.json")


def checked_folder(folder: Path) -> Path:
    """Return `folder` if its files can be given to Transformers. Nothing large is read or made.

    Raises `ModelError` for files that are not regular or too large, for a config.json that can't be read, and for one
    that describes a model of more than `MOST_LAYERS` layers or far larger than the weights beside it.
    """
    for file in sorted(folder.iterdir()):
        if file.suffix not in (*_SMALL, *_WEIGHTS):
            continue
        if not file.is_file():
            raise ModelError(f"{file} is not a regular file")
        if file.suffix in _SMALL and file.stat().st_size > MOST_SMALL:
            raise ModelError(f"{file} has {file.stat().st_size:,} bytes; at most {MOST_SMALL:,} are read")
    for name in _CONFIGS:
        if (folder / name).exists():
            config = read_config(folder / name)
            if name == "config.json":
                _check_size(folder, config)
    return folder


def read_config(file: Path) -> dict[str, Any]:
    """Return the object in a small JSON file; it may hold infinity, as some configurations do. Raises `ModelError`."""
    try:
        config = json.loads(files.read_text(file, MOST_CONFIG), parse_constant=_constant)
    except (files.Unreadable, RecursionError, ValueError) as error:
        reason = "is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ModelError(f"{file} can't be read: {reason}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file} must hold an object, not {type(config).__name__}")
    for place, value in _leaves(config, str(file)):
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ModelError(f"{place}: the number has more than 64 bits")
        if _counts_layers(place) and isinstance(value, int) and value > MOST_LAYERS:
            raise ModelError(f"{place}: {value:,} layers; at most {MOST_LAYERS:,} are made")
    return config


def _counts_layers(place: str) -> bool:
    name = place.rpartition(": ")[2]
    return "layers" in name or "n_layer" in name


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is no number")
    return float(name)


def _leaves(value: Any, place: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the values within lists and objects, with their places. Raises `ModelError` for a nest too deep."""
    if depth > MOST_DEPTH:
        raise ModelError(f"{place[:300]} is nested more than {MOST_DEPTH} levels deep")
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _leaves(entry, f"{place}: {key:.60}", depth + 1)
    elif isinstance(value, list):
        for entry in value:
            yield from _leaves(entry, place, depth + 1)
    else:
        yield place, value


def _check_size(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise `ModelError` if the model of `config` is far larger than the weights in `folder`."""
    weights = [file for file in folder.iterdir() if file.suffix in _WEIGHTS and file.is_file()]
    stored = [_stored(file) for file in weights]
    tensors = sum(count for _, count in stored) or MOST_LAYERS
    for place, value in _leaves(config, str(folder / "config.json")):
        if _counts_layers(place) and isinstance(value, int) and value > max(tensors, FREE_LAYERS):
            raise ModelError(f"{place}: {value:,} layers, but there are {tensors:,} tensors beside it")
    there = sum(size for size, _ in stored)
    if weights and (size := _size_in_memory(folder)) > FREE + GROWTH * there:
        raise ModelError(
            f"{folder / 'config.json'} describes a model of {size / 1e9:,.1f} GB, but there are {there / 1e6:,.1f} MB "
            "of weights beside it"
        )


def _stored(file: Path) -> tuple[int, int]:
    """Return (bytes, number of tensors) of a file of weights; 0 tensors: not known.

    Raises `ModelError` for a safetensors file whose header lies.
    """
    count = 0
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt") as opened:
                count = len(opened.keys())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} can't be loaded: {error}") from error
    return file.stat().st_size, count


def _size_in_memory(folder: Path) -> int:
    """Return the bytes of the model that a folder's configuration describes, without its head; 0: it can't be made."""
    import torch
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModel.from_config(config, trust_remote_code=False)
    except UNREADABLE:
        return 0  # loading it says why
    return sum(math.prod(tensor.shape) * tensor.itemsize for tensor in model.state_dict().values())
