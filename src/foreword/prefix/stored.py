"""The saved form of a prefix: a folder with `prefix.safetensors` and `manifest.json`.

This file handles plain tensors by name and a manifest of JSON values; `Prefix.save` and `Prefix.load` interpret them.
Tensor names: `<slot>.key`, `<slot>.value`, `extra.<name>`. Some tensors may be stored encoded (see `encoding`).

Version 3 is written. `content` is the digest of what attention sees, `digest` that of the whole manifest, `content`
included. Versions 1 and 2 (the first with encoded tensors) are read: their `digest` is the `content` of now.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from foreword.errors import PrefixError, PrefixFormatError
from foreword.files import MOST_JSON, FolderFiles, Unreadable, json_of, new_folder, write_json, write_text
from foreword.folders import reread
from foreword.prefix.encoding import Encoded, check_spec, check_total, decoded, encoded, stored_specs, stored_tensors
from foreword.sealing import manifest_digest, sealed
from foreword.tensorfiles import TensorFile, room, tensors_of
from foreword.versions.opening import files_of, in_version

T = TypeVar("T")
FORMAT = "foreword-prefix"
VERSION = 3
READABLE = (1, 2, 3)
TENSORS = "prefix.safetensors"
MANIFEST = "manifest.json"
EXTRA = "extra."  # the names of extra tensors begin with it
COVERED = "tensors, offset and merge"  # by the digest of versions 1 and 2
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_MOST_NAMES = 4096  # slots and extra tensors
_LONGEST = 200  # characters of a name
_MOST = 2**31 - 1  # of an offset, and of a number in a shape
_FIELDS = {
    "position_offset": int, "length": int, "merge": str, "slots": dict, "extras": dict,
    "base": dict, "method": str, "record": dict, "content": str, "digest": str,
}  # fmt: skip
_NEWER = ("content",)  # fields that versions 1 and 2 don't have
_OPTIONAL = ("length", "content")  # fields that they may lack


def content_digest(tensors: Mapping[str, Tensor], position_offset: int, merge: str) -> str:
    """Return the SHA-256 over what attention sees: offset, merge, and every tensor's name, shape, dtype and bytes."""
    digest = hashlib.sha256()
    digest.update(f"{FORMAT}/1/{position_offset}/{merge}\n".encode())
    for name, tensor in sorted(tensors.items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name}/{tuple(data.shape)}/{_dtype_name(data)}\n".encode())
        if data.numel():
            digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return "sha256:" + digest.hexdigest()


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], encoding: Mapping[str, Encoded]) -> Path:
    """Write the folder `path`, atomically, and return it.

    tensors: by the names above. facts: the other entries of the manifest, with `position_offset` and `merge`.
    encoding: tensor name → the stored form that decodes to exactly that tensor.
    Raises `PrefixFormatError` if `path` holds something other than a prefix, `PrefixError` if an encoding decodes to
    another tensor or if what is written could not be read again, `StorageError` if it can't be written.
    """
    require_replaceable(path)
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    in_file, manifest = stored_tensors(copies, encoding), _manifest(path, copies, facts, encoding)
    with new_folder(path) as folder:
        save_file(in_file, folder / TENSORS, metadata={"version": str(VERSION)})
        if encoding:  # without indentation, which would be half of a small prefix
            write_text(folder / MANIFEST, json.dumps(manifest, separators=(",", ":"), allow_nan=False) + "\n")
        else:
            write_json(folder / MANIFEST, manifest)
    return path


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (tensors by name, manifest) of the folder `path`. The tensors own their memory.

    Raises `PrefixFormatError` unless names, shapes and dtypes are those of the manifest.
    """
    files = files_of(path)
    manifest = _read_manifest(path, files)
    expected, found = _stored_tensors(path, manifest, files)
    tensors = {name: decoded(name, spec, found, DTYPES[spec["dtype"]]) for name, spec in expected.items()}
    return tensors, manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """Read and check `manifest.json` in the folder `path`; the tensors are not read. Raises `PrefixFormatError`."""
    return steadily(path, lambda: _read_manifest(path, files_of(path)))


def encodings_in(path: Path) -> dict[str, Encoded]:
    """Return the encoded tensors of the folder `path` as they are stored, by name. Raises `PrefixFormatError`."""
    files = files_of(path)
    expected, found = _stored_tensors(path, _read_manifest(path, files), files)
    return {name: encoded(name, spec, found) for name, spec in expected.items() if "encoding" in spec}


def steadily(path: Path, read: Callable[[], T]) -> T:
    """Return `read()`. While a writer replaces the folder `path`, a `PrefixFormatError` means: read again."""
    return reread((path, path / MANIFEST, path / TENSORS), read, (PrefixFormatError,))


def require_content(path: Path, manifest: Mapping[str, Any], content: str, length: int) -> None:
    """Raise `PrefixFormatError` unless digest and length of the tensors are those that the manifest of `path` names."""
    expected = manifest["content" if manifest["version"] == VERSION else "digest"]
    if content != expected:
        raise PrefixFormatError(
            f"{path}: content digest is {content}, the manifest says {expected}; the files were changed or damaged"
        )
    if manifest.get("length", length) != length:
        raise PrefixFormatError(f"{path}: length is {length}, the manifest says {manifest['length']}")


def require_replaceable(path: Path) -> None:
    """Raise `PrefixFormatError` if there is something at `path` that is not a saved prefix."""
    if in_version(path):
        raise PrefixFormatError(f"{path} is a version in a store, which never changes; save elsewhere and add it")
    if os.path.lexists(path) and not _replaceable(path):
        raise PrefixFormatError(f"{path} exists and is not a saved prefix; choose another name or remove it")


def require_names(names: Iterable[object]) -> None:
    """Raise `PrefixError` for the name of a slot or an extra tensor that can't be stored."""
    for count, name in enumerate(names):
        if not isinstance(name, str) or not 0 < len(name) <= _LONGEST or not name.isprintable():
            raise PrefixError(f"{name!r:.80} can't be a slot's or tensor's name: 1 to {_LONGEST} printable characters")
        if name.startswith(EXTRA) or "/" in name or "\\" in name:
            raise PrefixError(f"{name!r:.80} can't be a slot's or tensor's name: no {EXTRA!r} in front, no slashes")
        if count == _MOST_NAMES:
            raise PrefixError(f"a prefix can't have more than {_MOST_NAMES:,} slots and extra tensors")


def require_dtypes(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise `PrefixError` for a tensor of a type that can't be stored."""
    for name, tensor in tensors:
        if _dtype_name(tensor) not in DTYPES:
            raise PrefixError(f"{name} is {_dtype_name(tensor)}, which can't be stored (known: {', '.join(DTYPES)})")


def _manifest(
    path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], encoding: Mapping[str, Encoded]
) -> dict[str, Any]:
    """Return the manifest to write, checked as it will be when it is read."""
    slots: dict[str, dict[str, Any]] = {}
    extras: dict[str, Any] = {}
    for name, tensor in tensors.items():
        spec = _spec(tensor) | (encoding[name].spec if name in encoding else {})
        if name.startswith(EXTRA):
            extras[name.removeprefix(EXTRA)] = spec
        else:
            slot, _, suffix = name.rpartition(".")
            slots.setdefault(slot, {})[suffix] = spec
    content = content_digest(tensors, facts["position_offset"], facts["merge"])
    manifest = {"format": FORMAT, "version": VERSION, **facts, "slots": slots, "extras": extras, "content": content}
    try:
        checked = sealed(manifest)
    except Unreadable as error:
        raise PrefixError(f"{path}: its manifest {error}") from error
    _check_fields(path / MANIFEST, checked)
    _expected_tensors(path, checked)
    return checked


def _read_manifest(path: Path, files: FolderFiles) -> dict[str, Any]:
    manifest = _parsed_manifest(path, files)
    if manifest["version"] == VERSION and (actual := manifest_digest(manifest)) != manifest["digest"]:
        raise PrefixFormatError(
            f"{path / MANIFEST}: its digest is {actual}, it says {manifest['digest']:.80}; it was changed or damaged"
        )
    return manifest


def _parsed_manifest(path: Path, files: FolderFiles) -> dict[str, Any]:
    """Return the manifest in the folder `path` with fields of the right types; its digest is not checked."""
    file = path / MANIFEST
    if not os.path.isfile(file):  # unlike pathlib's, it raises nothing
        raise PrefixFormatError(f"{path} is not a saved prefix: there is no {MANIFEST} in it")
    try:
        manifest = json_of(files.read(MANIFEST, MOST_JSON))
    except Unreadable as error:
        raise PrefixFormatError(f"{file} {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise PrefixFormatError(f"{file}: 'format' must be {FORMAT!r}")
    _check_fields(file, manifest)
    return manifest


def _check_fields(file: Path, manifest: Mapping[str, Any]) -> None:
    version = manifest.get("version")
    if type(version) is not int or version not in READABLE:
        known = ", ".join(map(str, READABLE))
        raise PrefixFormatError(
            f"{file}: format version {version!r:.40} is not readable here (known: {known}); update foreword"
        )
    if version < VERSION and (newer := [name for name in _NEWER if name in manifest]):
        raise PrefixFormatError(f"{file}: has {newer[0]!r}, which version {version} did not know; it was changed")
    for name, kind in _FIELDS.items():
        absent = version < VERSION and name in _OPTIONAL and name not in manifest
        if not absent and type(value := manifest.get(name)) is not kind:
            raise PrefixFormatError(f"{file}: {name!r} must be a {kind.__name__}, got {value!r:.60}")


def _expected_tensors(path: Path, manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return tensor name → its checked entry in the manifest."""
    try:
        require_names((*manifest["slots"], *manifest["extras"]))
    except PrefixError as error:
        raise PrefixFormatError(f"{path / MANIFEST}: {error}") from error
    expected: dict[str, Mapping[str, Any]] = {}
    for name, pair in manifest["slots"].items():
        for suffix in ("key", "value"):
            expected[f"{name}.{suffix}"] = _checked_spec(path, f"{name}.{suffix}", pair, suffix)
    for name in manifest["extras"]:
        expected[f"{EXTRA}{name}"] = _checked_spec(path, f"{EXTRA}{name}", manifest["extras"], name)
    for name, spec in expected.items():
        check_spec(path / MANIFEST, name, spec, manifest["version"])
    check_total(path / MANIFEST, expected)
    return expected


def _checked_spec(path: Path, name: str, holder: Any, key: str) -> Mapping[str, Any]:
    """Return `holder[key]`, the entry of the tensor `name`. Raises `PrefixFormatError` without shape and dtype."""
    spec = holder.get(key) if isinstance(holder, dict) else None
    shape = spec.get("shape") if isinstance(spec, dict) else None
    dtype = spec.get("dtype") if isinstance(spec, dict) else None
    valid = isinstance(shape, list) and len(shape) <= 8 and all(type(n) is int and 0 <= n <= _MOST for n in shape)
    if not isinstance(spec, dict) or not valid or not isinstance(dtype, str) or dtype not in DTYPES:
        raise PrefixFormatError(f"{path / MANIFEST}: {name} needs a 'shape' and a 'dtype', got {spec!r:.80}")
    return spec


def _stored_tensors(
    path: Path, manifest: Mapping[str, Any], files: FolderFiles
) -> tuple[dict[str, Mapping[str, Any]], dict[str, Tensor]]:
    """Return (the manifest's entry of each tensor, the tensors of the file, not decoded).

    What the file may hold is known before it is read.
    """
    file, expected = path / TENSORS, _expected_tensors(path, manifest)
    if not os.path.isfile(file):
        raise PrefixFormatError(f"{path} is incomplete: there is no {TENSORS} in it")
    specs = (stored_specs(name, spec) for name, spec in expected.items())
    in_file = {part: shape for parts in specs for part, shape in parts.items()}
    try:
        found = tensors_of(files.read(TENSORS, room(in_file)))
    except Unreadable as error:
        raise PrefixFormatError(f"{file} {error}") from error
    _compare(file, found, in_file, manifest["version"])
    return expected, found.tensors


def _compare(file: Path, found: TensorFile, expected: Mapping[str, Mapping[str, Any]], version: int) -> None:
    """Raise `PrefixFormatError` unless version, names, shapes and dtypes in the file are those of the manifest."""
    if (actual := found.metadata.get("version", str(version))) != str(version):
        raise PrefixFormatError(f"{file}: is of version {actual:.20}, the manifest says {version}")
    if missing := sorted(set(expected) - set(found.tensors)):
        raise PrefixFormatError(f"{file}: the manifest names {missing[0]}, but it is not there")
    if surplus := sorted(set(found.tensors) - set(expected)):
        raise PrefixFormatError(f"{file}: holds {surplus[0]!r:.80}, which the manifest does not name")
    for name, spec in expected.items():
        if (held := _spec(found.tensors[name])) != spec:
            raise PrefixFormatError(f"{file}: {name} is {held}, the manifest says {spec}")


def _spec(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": _dtype_name(tensor)}


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _replaceable(path: Path) -> bool:
    """Return True if `path` is an empty folder, or a saved prefix with nothing else in it."""
    try:
        names = set(os.listdir(path))
        if names and names <= {TENSORS, MANIFEST}:
            _parsed_manifest(path, files_of(path))
    except (OSError, PrefixFormatError):
        return False
    return names <= {TENSORS, MANIFEST}
