"""The saved form of a prefix: a folder with `prefix.safetensors` and `manifest.json`.

This file handles plain tensors by name and a manifest of JSON values; `Prefix.save` and `Prefix.load` interpret them.
Tensor names: `<slot>.key`, `<slot>.value`, `extra.<name>`. Version 1 stores every tensor plainly. Version 2 stores some
tensors encoded (see `encoding`), and its manifest says which.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foreword.errors import PrefixFormatError
from foreword.files import new_folder, write_json, write_text
from foreword.prefix.encoding import Encoded, check_spec, decoded, stored_specs, stored_tensors

FORMAT = "foreword-prefix"
VERSION = 1
ENCODED = 2  # the version of a prefix with encoded tensors
TENSORS = "prefix.safetensors"
MANIFEST = "manifest.json"
EXTRA = "extra."  # the names of extra tensors begin with it
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def content_digest(tensors: Mapping[str, Tensor], position_offset: int, merge: str) -> str:
    """Return the SHA-256 over what attention sees: offset, merge, and every tensor's name, shape, dtype and bytes."""
    digest = hashlib.sha256()
    digest.update(f"{FORMAT}/{VERSION}/{position_offset}/{merge}\n".encode())
    for name, tensor in sorted(tensors.items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name}/{tuple(data.shape)}/{_dtype_name(data)}\n".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes() if data.numel() else b"")
    return "sha256:" + digest.hexdigest()


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], encoding: Mapping[str, Encoded]) -> Path:
    """Write the folder `path`, atomically, and return it.

    tensors: by the names above. facts: the other entries of the manifest, with `position_offset` and `merge`.
    encoding: tensor name → the stored form that decodes to exactly that tensor.
    Raises `PrefixFormatError` if `path` holds something other than a prefix, `PrefixError` if an encoding decodes to
    another tensor, `StorageError` if it can't be written.
    """
    require_replaceable(path)
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    in_file, manifest = stored_tensors(copies, encoding), _manifest(copies, facts, encoding)
    with new_folder(path) as folder:
        save_file(in_file, folder / TENSORS, metadata={"format": FORMAT, "digest": manifest["digest"]})
        if encoding:  # without indentation, which would be half of a small prefix
            write_text(folder / MANIFEST, json.dumps(manifest, separators=(",", ":"), allow_nan=False) + "\n")
        else:
            write_json(folder / MANIFEST, manifest)
    return path


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (tensors by name, manifest) of the folder `path`.

    Raises `PrefixFormatError` unless names, shapes and dtypes are those of the manifest.
    """
    manifest = read_manifest(path)
    return _read_tensors(path, _expected_tensors(path, manifest)), manifest


def require_digest(path: Path, manifest: Mapping[str, Any], actual: str) -> None:
    """Raise `PrefixFormatError` if `actual` is not the digest that the manifest of `path` names."""
    if actual != manifest["digest"]:
        raise PrefixFormatError(
            f"{path}: content digest is {actual}, the manifest says {manifest['digest']}; "
            "the files were changed or damaged"
        )


def require_replaceable(path: Path) -> None:
    """Raise `PrefixFormatError` if there is something at `path` that is not a saved prefix."""
    if path.exists() and not _replaceable(path):
        raise PrefixFormatError(f"{path} exists and is not a saved prefix; choose another name or remove it")


def _manifest(
    tensors: Mapping[str, Tensor], facts: Mapping[str, Any], encoding: Mapping[str, Encoded]
) -> dict[str, Any]:
    slots: dict[str, dict[str, Any]] = {}
    extras: dict[str, Any] = {}
    for name, tensor in tensors.items():
        spec = _spec(tensor) | (encoding[name].spec if name in encoding else {})
        if name.startswith(EXTRA):
            extras[name.removeprefix(EXTRA)] = spec
        else:
            slot, _, suffix = name.rpartition(".")
            slots.setdefault(slot, {})[suffix] = spec
    digest = content_digest(tensors, facts["position_offset"], facts["merge"])
    version = ENCODED if encoding else VERSION
    return {"format": FORMAT, "version": version, **facts, "slots": slots, "extras": extras, "digest": digest}


def read_manifest(path: Path) -> dict[str, Any]:
    """Read and check `manifest.json` in the folder `path`; the tensors are not read. Raises `PrefixFormatError`."""
    file = path / MANIFEST
    if not path.is_dir() or not file.is_file():
        raise PrefixFormatError(f"{path} is not a saved prefix: there is no {MANIFEST} in it")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PrefixFormatError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise PrefixFormatError(f"{file}: 'format' must be {FORMAT!r}")
    if type(manifest.get("version")) is not int or manifest["version"] not in (VERSION, ENCODED):
        raise PrefixFormatError(
            f"{file}: format version {manifest.get('version')!r} is not readable here (known: {VERSION}, {ENCODED}); "
            "update foreword"
        )
    expected = {
        "position_offset": int, "merge": str, "slots": dict, "extras": dict,
        "base": dict, "method": str, "record": dict, "digest": str,
    }  # fmt: skip
    for name, kind in expected.items():
        value = manifest.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise PrefixFormatError(f"{file}: {name!r} must be a {kind.__name__}, got {value!r:.60}")
    return manifest


def _expected_tensors(path: Path, manifest: dict[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return tensor name → its checked entry in the manifest."""
    expected: dict[str, Mapping[str, Any]] = {}
    for name, pair in manifest["slots"].items():
        for suffix in ("key", "value"):
            expected[f"{name}.{suffix}"] = _checked_spec(path, f"{name}.{suffix}", pair, suffix)
    for name in manifest["extras"]:
        expected[f"extra.{name}"] = _checked_spec(path, f"extra.{name}", manifest["extras"], name)
    for name, spec in expected.items():
        check_spec(path / MANIFEST, name, spec, manifest["version"])
    return expected


def _checked_spec(path: Path, name: str, holder: Any, key: str) -> Mapping[str, Any]:
    """Return `holder[key]`, the entry of the tensor `name`. Raises `PrefixFormatError` without shape and dtype."""
    spec = holder.get(key) if isinstance(holder, dict) else None
    shape = spec.get("shape") if isinstance(spec, dict) else None
    dtype = spec.get("dtype") if isinstance(spec, dict) else None
    valid = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    if not valid or not isinstance(dtype, str) or dtype not in DTYPES:
        raise PrefixFormatError(f"{path / MANIFEST}: {name} needs a 'shape' and a 'dtype', got {spec!r:.80}")
    assert isinstance(spec, dict)
    return spec


def _read_tensors(path: Path, expected: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    file = path / TENSORS
    if not file.is_file():
        raise PrefixFormatError(f"{path} is incomplete: there is no {TENSORS} in it")
    stored_expected: dict[str, dict[str, Any]] = {}
    for name, spec in expected.items():
        stored_expected |= stored_specs(name, spec)
    try:
        with safe_open(file, framework="pt") as handle:
            _compare_names(file, set(handle.keys()), set(stored_expected))
            stored = {}
            for name, spec in stored_expected.items():
                stored[name] = handle.get_tensor(name)
                actual = _spec(stored[name])
                if actual != spec:
                    raise PrefixFormatError(f"{file}: {name} is {actual}, the manifest says {spec}")
    except (SafetensorError, OSError) as error:
        raise PrefixFormatError(f"{file} can't be read: {error}") from error
    return {
        name: decoded(name, spec, {part: stored[part] for part in stored_specs(name, spec)}, DTYPES[spec["dtype"]])
        for name, spec in expected.items()
    }


def _compare_names(file: Path, actual: set[str], expected: set[str]) -> None:
    if missing := sorted(expected - actual):
        raise PrefixFormatError(f"{file}: the manifest names {missing[0]}, but it is not there")
    if surplus := sorted(actual - expected):
        raise PrefixFormatError(f"{file}: holds {surplus[0]}, which the manifest does not name")


def _spec(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": _dtype_name(tensor)}


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _replaceable(path: Path) -> bool:
    """Return True if `path` is an empty folder, or a saved prefix with nothing else in it."""
    if not path.is_dir() or not {entry.name for entry in path.iterdir()} <= {TENSORS, MANIFEST}:
        return False
    if not (path / MANIFEST).exists():
        return not (path / TENSORS).exists()
    try:
        read_manifest(path)
    except PrefixFormatError:
        return False
    return True
