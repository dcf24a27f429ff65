"""Hashes of weights: of the files of a stored checkpoint, or of parameters in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from foreword.errors import ModelError, StorageError
from foreword.files import Unreadable, cache_folder, read_json, write_json

_PATTERNS = ("*.safetensors", "*.gguf", "pytorch_model*.bin")


def weight_files(folder: Path) -> list[Path]:
    """Return the checkpoint's weight files, of the first pattern in `_PATTERNS` that matches. Raises `ModelError`."""
    for pattern in _PATTERNS:
        if files := sorted(folder.glob(pattern)):
            return files
    raise ModelError(f"{folder} holds no weights ({', '.join(_PATTERNS)})")


def hash_files(files: list[Path]) -> str:
    """Return the SHA-256 over the SHA-256 digests of `files`, in name order. Digests are kept in Foreword's cache."""
    combined = hashlib.sha256()
    for file in sorted(files):
        combined.update(_file_digest(file).encode())
    return "sha256:" + combined.hexdigest()


def hash_parameters(model: torch.nn.Module) -> str:
    """Return the SHA-256 over names, shapes, dtypes and bytes of the state dict, in name order."""
    return hash_tensors(model.state_dict())


def hash_tensors(tensors: Mapping[str, Any]) -> str:
    """Return the SHA-256 over names, shapes, dtypes and bytes, in name order. Quantised tensors are hashed by parts."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_plain(tensors)):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name}/{tuple(data.shape)}/{data.dtype}\n".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return "sha256:" + digest.hexdigest()


def _plain(tensors: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield names with plain tensors. A wrapper such as torchao's is replaced by the tensors inside."""
    for name, tensor in tensors.items():
        if hasattr(tensor, "__tensor_flatten__"):
            inner_names = tensor.__tensor_flatten__()[0]
            yield from _plain({f"{name}.{inner}": getattr(tensor, inner) for inner in inner_names})
        elif isinstance(tensor, torch.Tensor):
            yield name, tensor


def _file_digest(file: Path) -> str:
    """Return the SHA-256 of one file. The cache keeps it by path, size and modification time."""
    real = file.resolve()
    stat = real.stat()
    identity = [str(real), stat.st_size, stat.st_mtime_ns]
    store = cache_folder() / "hashes" / (hashlib.sha256(str(real).encode()).hexdigest()[:32] + ".json")
    entry = _remembered(store)
    if entry.get("identity") == identity:
        return str(entry["digest"])
    with real.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        write_json(store, {"identity": identity, "digest": digest})
    except (OSError, StorageError):  # without a writable cache the file is only hashed again
        return digest
    return digest


def _remembered(store: Path) -> dict[str, Any]:
    """Return the cache entry in the file `store`; {} if it can't be read."""
    try:
        value = read_json(store)
    except Unreadable:
        return {}
    return value if isinstance(value, dict) else {}
