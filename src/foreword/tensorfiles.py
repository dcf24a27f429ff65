"""Tensor files (safetensors), read whole into memory of their own: no tensor stays mapped to its file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from foreword.files import Unreadable, parse_json, read_bytes

MOST = 2**35  # bytes of one file
_MOST_HEADER = 4 * 2**20  # bytes
_MOST_TENSORS = 20_000
_LENGTH = 8  # bytes at the beginning that say how long the header is


@dataclass(frozen=True)
class TensorFile:
    """tensors: by name, on the CPU. metadata: texts of the header."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file that was just written, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensor_file(path: Path, most: int = MOST, size: int | None = None, digest: str | None = None) -> TensorFile:
    """Read a safetensors file of at most `most` bytes, once; a larger file is not read at all.

    size: the number of bytes that it must have. digest: the SHA-256 that they must have, in hexadecimal.
    Raises `Unreadable`.
    """
    return tensors_of(read_bytes(path, min(most, MOST)), size, digest)


def tensors_of(data: bytes, size: int | None = None, digest: str | None = None) -> TensorFile:
    """Return the tensors of a safetensors file's bytes. Raises `Unreadable`; see `read_tensor_file`."""
    if size is not None and len(data) != size:
        raise Unreadable(f"was changed or damaged: it has {len(data):,} bytes, not {size:,}")
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        raise Unreadable("was changed or damaged: its digest differs from the one that was stored with it")
    metadata = _metadata(data)
    try:
        tensors = load(data)
    except (SafetensorError, MemoryError) as error:
        raise Unreadable(f"can't be read: {' '.join(str(error).split())}") from error
    except (AssertionError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise Unreadable(f"can't be read: it holds a tensor that torch has no place for ({error})") from error
    return TensorFile(tensors, metadata)


def room(shapes: Mapping[str, Mapping[str, Any]]) -> int:
    """Return how many bytes a file of these tensors can have at most. shapes: name → `shape` and `dtype`."""
    total = 4096 + _LENGTH
    for name, spec in shapes.items():
        size = getattr(torch, spec["dtype"]).itemsize
        for count in spec["shape"]:
            size *= count
        total += size + 256 + 6 * len(name)
    return total


def _metadata(data: bytes) -> dict[str, str]:
    """Return the header's own texts. Raises `Unreadable` for a header that would cost much to read."""
    length = int.from_bytes(data[:_LENGTH], "little")
    if len(data) < _LENGTH or length > min(len(data) - _LENGTH, _MOST_HEADER):
        raise Unreadable(f"can't be read: its header of {length:,} bytes is cut off or too long")
    header = data[_LENGTH : _LENGTH + length]
    if header.count(b"{") > _MOST_TENSORS:
        raise Unreadable(f"can't be read: it holds more than {_MOST_TENSORS:,} tensors")
    try:
        read = parse_json(header.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Unreadable("can't be read: its header is not valid UTF-8") from error
    except Unreadable as error:
        raise Unreadable(f"can't be read: its header {error}") from error
    found = read.get("__metadata__", {}) if isinstance(read, dict) else {}
    return {str(name): str(text) for name, text in found.items()} if isinstance(found, dict) else {}
