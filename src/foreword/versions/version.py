"""A version: files that never change, and `version.json`, which names them by size and digest and says what they are.

    version.json                what this file describes
    README.md                   the model card
    prefix/manifest.json, prefix/prefix.safetensors
    head/head.json, head/head.safetensors    of a task with a trained head

The version's own digest covers `files` and `facts`. It is the version's identity and its folder's name, so that the
bytes prove themselves. `digest` in version.json covers the rest too, such as `created`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from foreword.errors import PrefixFormatError
from foreword.files import Unreadable
from foreword.sealing import manifest_digest, sealed
from foreword.shown import Shown
from foreword.versions.names import is_digest
from foreword.versions.reading import unsealed

FORMAT, FORMAT_VERSION = "foreword-version", 1
FILE, CARD = "version.json", "README.md"
PREFIX, HEAD = "prefix", "head"
REQUIRED = (CARD, "prefix/manifest.json", "prefix/prefix.safetensors")
ALLOWED = (*REQUIRED, "head/head.json", "head/head.safetensors")
MOST = 2**20  # bytes of version.json
MOST_FILE = 2**35  # bytes of any other file
_FACTS = {"name": str, "prefix": str, "base": dict, "method": str, "length": int, "bytes": int, "metrics": dict}


@dataclass(frozen=True)
class Stored:
    """One file: its size in bytes and SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True, repr=False)
class Version(Shown):
    """What version.json says.

    digest: 64 hexadecimal digits. files: by their names with slashes. facts: `name` (team/task), `prefix` (the digest
    of what attention sees), `base`, `method`, `length`, `bytes`, `metrics`, and where known `task`, `template`, `data`,
    `licence`, `description`. created: when it was first added, in UTC.
    """

    digest: str
    files: Mapping[str, Stored]
    facts: Mapping[str, Any]
    created: datetime = field(compare=False)

    @property
    def name(self) -> str:
        return str(self.facts["name"])

    @property
    def base_name(self) -> str:
        """What its base is called: the name it was loaded by, or its architecture."""
        base = self.facts["base"]
        return str(base.get("source") or base.get("architecture"))

    @property
    def has_head(self) -> bool:
        return "head/head.json" in self.files

    def _shown(self) -> tuple[str, dict[str, Any]]:
        facts = self.facts
        title = f"Version {self.name}@{self.digest[:12]}, {facts['bytes'] / 1000:,.0f} KB"
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in facts["metrics"].items()) or "none"
        return title, {
            "base": self.base_name,
            "made by": facts["method"],
            "metrics": metrics,
            "created": f"{self.created:%c}",
        }


def described(folder: Path, facts: Mapping[str, Any]) -> Version:
    """Return the version that the files in `folder` and `facts` make, created now. Raises `PrefixFormatError`."""
    files = {}
    for name in ALLOWED:
        if (path := folder / name).exists():
            with path.open("rb") as file:
                files[name] = Stored(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
    now = datetime.now(UTC).replace(microsecond=0)
    return parsed(_written(files, facts, now), str(folder / FILE))


def as_json(version: Version) -> bytes:
    """Return the bytes of version.json."""
    return _written(version.files, version.facts, version.created)


def parsed(data: bytes, where: str, digest: str | None = None) -> Version:
    """Return the version of a version.json's bytes. where: its place, for errors. digest: the one that it must have.

    Raises `PrefixFormatError`.
    """
    value = unsealed(data, where, FORMAT, FORMAT_VERSION, "add the version again")
    files, facts = _files(value.get("files"), where), value.get("facts")
    _check_facts(facts, where)
    actual = _identity(value["files"], value["facts"])
    if actual != value.get("id") or digest not in (None, actual):
        expected = digest or value.get("id")
        raise PrefixFormatError(f"{where} is of version {actual}, not of {expected!s:.80}; it was changed")
    return Version(
        actual, MappingProxyType(files), MappingProxyType(value["facts"]), _time(value.get("created"), where)
    )


def _written(files: Mapping[str, Stored], facts: Mapping[str, Any], created: datetime) -> bytes:
    """Return version.json's bytes. Raises `PrefixFormatError` for facts that JSON can't hold, and for too many."""
    listed = {name: {"bytes": file.size, "sha256": file.sha256} for name, file in sorted(files.items())}
    value = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "id": _identity(listed, facts),
        "files": listed,
        "facts": dict(facts),
        "created": created.isoformat(),
    }
    try:
        data = (json.dumps(sealed(value), indent=2, ensure_ascii=False) + "\n").encode()
    except Unreadable as error:
        raise PrefixFormatError(f"what is to be said of the version {error}") from error
    if len(data) > MOST:
        raise PrefixFormatError(f"what is to be said of the version has {len(data):,} bytes; at most {MOST:,} are kept")
    return data


def _identity(files: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    return manifest_digest({"files": files, "facts": dict(facts)}).removeprefix("sha256:")


def _files(value: Any, where: str) -> dict[str, Stored]:
    """Return the named files, checked. Raises `PrefixFormatError`."""
    if not isinstance(value, dict) or not set(REQUIRED) <= set(value) <= set(ALLOWED):
        raise PrefixFormatError(f"{where}: 'files' must name {', '.join(REQUIRED)}, and a head's at most")
    for name, entry in value.items():
        size = entry.get("bytes") if isinstance(entry, dict) else None
        digest = entry.get("sha256") if isinstance(entry, dict) else None
        if type(size) is not int or not 0 <= size <= MOST_FILE or not isinstance(digest, str) or not is_digest(digest):
            raise PrefixFormatError(f"{where}: {name} needs 'bytes' and 'sha256', got {entry!r:.80}")
    return {name: Stored(entry["bytes"], entry["sha256"]) for name, entry in value.items()}


def _check_facts(value: Any, where: str) -> None:
    for name, kind in _FACTS.items():
        if not isinstance(value, dict) or type(found := value.get(name)) is not kind:
            found = value.get(name) if isinstance(value, dict) else value
            raise PrefixFormatError(f"{where}: {name!r} of 'facts' must be a {kind.__name__}, got {found!r:.60}")
    for name, number in value["metrics"].items():
        if type(number) not in (int, float):
            raise PrefixFormatError(f"{where}: the metric {name!r:.40} must be a number, got {number!r:.40}")


def _time(value: Any, where: str) -> datetime:
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except (TypeError, ValueError, OverflowError) as error:
        raise PrefixFormatError(f"{where}: 'created' must be a date and time, got {value!r:.40}") from error
