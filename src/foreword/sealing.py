"""Manifests that say by a digest what they and their files hold, and older ones, whose digest covers less."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.errors import OldFormatWarning
from foreword.files import DEEPEST, MOST_JSON, FolderFiles, Unreadable, json_of, parse_json

if TYPE_CHECKING:
    from torch import Tensor


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 over all of a manifest but its own `digest`: JSON with sorted names and without spaces."""
    covered = {name: value for name, value in manifest.items() if name != "digest"}
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return `manifest` as it will be read again, with its digest.

    Raises `Unreadable` if it couldn't be: for what JSON doesn't know, names that are no text, NaN, and too much of it.
    """
    _require_names(manifest)
    try:
        text = json.dumps(manifest, indent=2, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Unreadable(f"can't be stored as JSON: {error}") from error
    if len(text) > MOST_JSON - 100:
        raise Unreadable(f"has {len(text):,} bytes; at most {MOST_JSON:,} are read again")
    plain: dict[str, Any] = parse_json(text)
    return plain | {"digest": manifest_digest(plain)}


def _require_names(value: Any, depth: int = 0) -> None:
    """Raise `Unreadable` for an object with a name that is not text: JSON would change it silently."""
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise Unreadable(f"can't be stored as JSON: the name {name!r:.40} is not text")
    if isinstance(value, Mapping | list | tuple) and depth <= DEEPEST:
        for part in value.values() if isinstance(value, Mapping) else value:
            _require_names(part, depth + 1)


def note_old_format(file: Path, covered: str) -> None:
    """Warn that `file` has an older format, whose digest covers no more than `covered`."""
    warnings.warn(
        f"{file} has an older format, whose digest covers {covered} alone; save it again to protect all of it",
        OldFormatWarning,
        stacklevel=3,
    )


def read_sealed(
    files: FolderFiles, manifest_name: str, tensor_name: str, versions: Sequence[int], front: str = ""
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return (manifest, tensors) of two files of a folder that were written together.

    Of `versions` the newest has the digest of the whole manifest in `digest`, and in `content` and `bytes` digest and
    size of the tensor file. Older ones have the tensor file's digest in `digest`. front: stands before that digest.
    Raises `Unreadable`, which names the file, also for other versions.
    """
    from foreword.tensorfiles import MOST, tensors_of

    manifest_file, tensor_file = files.folder / manifest_name, files.folder / tensor_name
    try:
        manifest = json_of(files.read(manifest_name, MOST_JSON))
    except Unreadable as error:
        raise Unreadable(f"{manifest_file} {error}") from error
    if not isinstance(manifest, dict):
        raise Unreadable(f"{manifest_file} is no manifest")
    content, size = _content(manifest_file, manifest, versions)
    if not content.startswith(front):
        raise Unreadable(f"{manifest_file}: {content!r:.80} is no digest of {tensor_file.name}")
    try:
        found = tensors_of(
            files.read(tensor_name, MOST if size is None else min(size, MOST)), size, content.removeprefix(front)
        )
    except Unreadable as error:
        raise Unreadable(f"{tensor_file} {error}") from error
    if (actual := found.metadata.get("version", str(manifest["version"]))) != str(manifest["version"]):
        raise Unreadable(f"{tensor_file} is of version {actual:.20}, its manifest of {manifest['version']}")
    return manifest, found.tensors


def _content(file: Path, manifest: Mapping[str, Any], versions: Sequence[int]) -> tuple[str, int | None]:
    """Return (digest of the tensor file, its size if known) by a manifest, whose own digest is checked."""
    version, newest = manifest.get("version"), versions[-1]
    content: Any
    size: Any
    if type(version) is not int or version not in versions:
        known = ", ".join(map(str, versions))
        raise Unreadable(f"{file}: version {version!r:.40} is not readable here (known: {known}); update foreword")
    if version < newest:
        if newer := [name for name in ("bytes", "content") if name in manifest]:
            raise Unreadable(f"{file} has {newer[0]!r}, which version {version} did not know; it was changed")
        content, size = manifest.get("digest"), None
    else:
        content, size = manifest.get("content"), manifest.get("bytes")
        if manifest.get("digest") != manifest_digest(manifest):
            raise Unreadable(f"{file} was changed or damaged: its digest is not that of its content")
    sized = size is None if version < newest else type(size) is int and size >= 0
    if not isinstance(content, str) or not sized:
        raise Unreadable(f"{file} doesn't say which tensors belong to it")
    return content, size
