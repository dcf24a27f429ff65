"""Hashes of weights: of the files of a stored checkpoint, or of parameters in memory."""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from foreword import status
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
    return StoredWeights(files)()


class StoredWeights:
    """The weight files of a stored checkpoint, held open, and the hash over them: call it.

    The files are hashed when the hash is first needed. They are held open until then, so that the hash is that of these
    files even if they have been deleted or replaced by others. Raises `ModelError` if a file can't be opened.
    """

    def __init__(self, files: list[Path]) -> None:
        self._hash: str | None = None
        self._lock = threading.Lock()
        self._files: list[tuple[Path, int, os.stat_result]] = []
        handles: list[int] = []
        self._close = weakref.finalize(self, _close, handles)
        for file in sorted(files):
            try:
                handles.append(os.open(file.resolve(), os.O_RDONLY | getattr(os, "O_BINARY", 0)))
            except OSError as error:
                raise ModelError(f"{file} can't be opened: {error.strerror or error}") from error
            self._files.append((file.resolve(), handles[-1], os.fstat(handles[-1])))

    def __call__(self) -> str:
        """Return the hash. Raises `ModelError` if a file's content was changed in place since it was opened."""
        with self._lock:
            if self._hash is None:
                combined = hashlib.sha256()
                for path, handle, opened in self._files:
                    combined.update(_file_digest(path, handle, opened).encode())
                self._hash = "sha256:" + combined.hexdigest()
                self._close()
            return self._hash

    def require_unchanged(self) -> None:
        """Raise `ModelError` unless the files that were opened are still the ones at their paths."""
        for path, _, opened in self._files:
            try:
                now = path.stat()
            except OSError as error:
                raise ModelError(f"{path} was removed while it was loaded; load again") from error
            if (now.st_dev, now.st_ino, *_state(now)) != (opened.st_dev, opened.st_ino, *_state(opened)):
                raise ModelError(f"{path} was changed while it was loaded; load again")

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (str, self())  # another process has no open files; it gets the hash


def _close(handles: list[int]) -> None:
    for handle in handles:
        os.close(handle)


def _state(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns


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


def _file_digest(path: Path, handle: int, opened: os.stat_result) -> str:
    """Return the SHA-256 of one open file. The cache keeps it by path, size and modification time."""
    identity = [str(path), *_state(opened)]
    store = cache_folder() / "hashes" / (hashlib.sha256(str(path).encode()).hexdigest()[:32] + ".json")
    entry = _remembered(store)
    if entry.get("identity") == identity and isinstance(entry.get("digest"), str):
        return str(entry["digest"])
    digest = _digest(handle, f"hashing {path.name}, in MB", opened.st_size)
    if _state(os.fstat(handle)) != _state(opened):
        raise ModelError(f"{path} was overwritten after it was loaded, so the hash of its weights is lost; load again")
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        write_json(store, {"identity": identity, "digest": digest})
    except (OSError, StorageError):  # without a writable cache the file is only hashed again
        return digest
    return digest


def _digest(handle: int, what: str, size: int) -> str:
    """Return the SHA-256 of an open file, read without its shared offset. what: said meanwhile."""
    digest, offset = hashlib.sha256(), 0
    while block := os.pread(handle, 2**22, offset):
        digest.update(block)
        offset += len(block)
        status.doing(what, offset // 10**6, size // 10**6)
    return digest.hexdigest()


def _remembered(store: Path) -> dict[str, Any]:
    """Return the cache entry in the file `store`; {} if it can't be read."""
    try:
        value = read_json(store, 2**16)
    except Unreadable:
        return {}
    return value if isinstance(value, dict) else {}
