"""Tensor files (safetensors), read whole into memory of their own: no tensor stays mapped to its file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from foreword.files import Unreadable, manifest_digest, parse_json, read_bytes, read_json

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


def read_tensor_file(path: Path, most: int = MOST, digest: str | None = None) -> TensorFile:
    """Read a safetensors file of at most `most` bytes, once; a larger file is not read at all.

    digest: the SHA-256 that its bytes must have, in hexadecimal. Raises `Unreadable`.
    """
    data = read_bytes(path, min(most, MOST))
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


def read_sealed(
    manifest_file: Path, tensor_file: Path, versions: Sequence[int], front: str = ""
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return (manifest, tensors) of two files that were written together.

    Of `versions` the newest has the digest of the whole manifest in `digest`, and in `content` and `bytes` digest and
    size of the tensor file. Older ones have the tensor file's digest in `digest`. front: stands before that digest.
    Raises `Unreadable`, which names the file, also for other versions.
    """
    try:
        manifest = read_json(manifest_file)
    except Unreadable as error:
        raise Unreadable(f"{manifest_file} {error}") from error
    if not isinstance(manifest, dict):
        raise Unreadable(f"{manifest_file} is no manifest")
    content, most = _content(manifest_file, manifest, versions)
    if not content.startswith(front):
        raise Unreadable(f"{manifest_file}: {content!r:.80} is no digest of {tensor_file.name}")
    try:
        found = read_tensor_file(tensor_file, most, content.removeprefix(front))
    except Unreadable as error:
        raise Unreadable(f"{tensor_file} {error}") from error
    if (actual := found.metadata.get("version", str(manifest["version"]))) != str(manifest["version"]):
        raise Unreadable(f"{tensor_file} is of version {actual:.20}, its manifest of {manifest['version']}")
    return manifest, found.tensors


def _content(file: Path, manifest: Mapping[str, Any], versions: Sequence[int]) -> tuple[str, int]:
    """Return (digest of the tensor file, its most bytes) by a manifest, whose own digest is checked if it has one."""
    version, newest = manifest.get("version"), versions[-1]
    content: Any
    most: Any
    if type(version) is not int or version not in versions:
        known = ", ".join(map(str, versions))
        raise Unreadable(f"{file}: version {version!r:.40} is not readable here (known: {known}); update foreword")
    if version < newest:
        if newer := [name for name in ("bytes", "content") if name in manifest]:
            raise Unreadable(f"{file} has {newer[0]!r}, which version {version} did not know; it was changed")
        content, most = manifest.get("digest"), MOST
    else:
        content, most = manifest.get("content"), manifest.get("bytes")
        if manifest.get("digest") != manifest_digest(manifest):
            raise Unreadable(f"{file} was changed or damaged: its digest is not that of its content")
    if not isinstance(content, str) or type(most) is not int:
        raise Unreadable(f"{file} doesn't say which tensors belong to it")
    return content, most


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
