"""Making a version: a prefix's files, its head's, what is said of it, and its card, in a folder of their own."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from foreword.base.rendering import recorded_fields
from foreword.errors import ConfigError, PrefixError, PrefixFormatError
from foreword.files import Unreadable, read_json, write_text
from foreword.prefix import Prefix
from foreword.prefix.places import located
from foreword.prefix.records import public_prefix, recorded_config
from foreword.prefix.stored import MANIFEST, TENSORS, VERSION, encodings_in, read_manifest
from foreword.store.card import card
from foreword.store.private import require_public
from foreword.versions.version import CARD, HEAD, PREFIX, Version, described

LONGEST = 10_000  # characters of a description
HEAD_FILES = ("head.json", "head.safetensors")


@dataclass(frozen=True)
class About:
    """What is said of a version beside its record.

    metrics: name → number, for instance of `foreword eval`. licence: an SPDX name, such as "apache-2.0". description:
    what it is for, in plain words.
    Raises `ConfigError` for a metric that is no finite number, and for texts that are none or too long.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    licence: str | None = None
    description: str | None = None

    def __post_init__(self) -> None:
        for name, number in self.metrics.items():
            if type(number) not in (int, float) or not math.isfinite(number):
                raise ConfigError("metrics", f"{name!r:.60} must be a finite number, got {number!r:.60}")
        for name in ("licence", "description"):
            text = getattr(self, name)
            if text is not None and (not isinstance(text, str) or not 0 < len(text.strip()) <= LONGEST):
                raise ConfigError(name, f"must be text of at most {LONGEST:,} characters, got {text!r:.60}")


@contextmanager
def staged(prefix: Prefix | str | Path, name: str, about: About) -> Iterator[tuple[Version, Path]]:
    """Yield (version, the folder of its files). prefix: a value, a saved prefix's folder, a run's, or a reference.

    A folder's head comes along. Raises `PrefixFormatError` for damaged files, `PrefixError` for a record with private
    paths and for a prefix that was trained together with LoRA.
    """
    with TemporaryDirectory(prefix="foreword-") as temporary:
        folder = Path(temporary)
        if isinstance(prefix, Prefix):
            public_prefix(prefix).save(folder / PREFIX)
        else:
            with located(prefix) as found:
                _copy(Path(found), folder)
        facts = _facts(folder, name, about)
        require_public(facts, name)
        write_text(folder / CARD, card(facts, read_manifest(folder / PREFIX)["record"]))
        yield described(folder, facts), folder


def _copy(source: Path, folder: Path) -> None:
    """Copy a saved prefix and the head beside it, both checked. A prefix of an older format is saved anew."""
    loaded, beside = Prefix.load(source), source.absolute().parent
    if (beside / "lora").is_dir():
        raise PrefixError(
            f"{source} was trained together with {beside / 'lora'}; a version holds a prefix alone, and "
            "this one is not complete without its LoRA"
        )
    if read_manifest(source)["version"] == VERSION and public_prefix(loaded) == loaded:
        (folder / PREFIX).mkdir()
        for name in (MANIFEST, TENSORS):
            shutil.copyfile(source / name, folder / PREFIX / name)
    else:
        public_prefix(loaded).save(folder / PREFIX, encodings_in(source))
    if (beside / HEAD).is_dir() and source.name == PREFIX:
        _copy_head(beside / HEAD, folder / HEAD)
    if Prefix.load(folder / PREFIX).digest != loaded.digest:
        raise PrefixFormatError(f"{source} changed while it was copied; add it again")


def _copy_head(source: Path, target: Path) -> None:
    target.mkdir()
    for name in HEAD_FILES:
        if not (source / name).is_file():
            raise PrefixFormatError(f"{source} is incomplete: there is no {name} in it")
        shutil.copyfile(source / name, target / name)


def _facts(folder: Path, name: str, about: About) -> dict[str, Any]:
    """Return what version.json says of the prefix and head in `folder`."""
    prefix, manifest = Prefix.load(folder / PREFIX), read_manifest(folder / PREFIX)
    record, config = manifest["record"], recorded_config(manifest["record"])
    head = _head(folder / HEAD)
    require_public({"record": record, "base": manifest["base"], "head": head}, name)
    loss = {"validation_loss": record.get("validation_loss")}
    metrics = {key: value for key, value in loss.items() if type(value) in (int, float)} | dict(about.metrics)
    facts = {
        "name": name,
        "prefix": prefix.digest,
        "base": asdict(prefix.base),
        "method": prefix.method,
        "merge": prefix.merge,
        "length": prefix.length,
        "parameters": prefix.num_parameters,
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "task": _task(head) or config.get("task"),
        "head": True if head else None,
        "template": record.get("template"),
        "fields": recorded_fields(record),
        "data": record.get("data"),
        "metrics": metrics,
        "licence": about.licence,
        "description": about.description,
    }
    return {key: value for key, value in facts.items() if value is not None}


def _head(folder: Path) -> dict[str, Any]:
    """Return a head's manifest; {} if there is none."""
    if not folder.is_dir():
        return {}
    try:
        manifest = read_json(folder / HEAD_FILES[0])
    except Unreadable as error:
        raise PrefixFormatError(f"{folder / HEAD_FILES[0]} {error}") from error
    return manifest if isinstance(manifest, dict) else {}


def _task(head: Mapping[str, Any]) -> str | None:
    """Return the task of a head, or the tasks of a mixture's."""
    tasks = head.get("tasks")
    if not isinstance(tasks, dict):
        return None
    return ", ".join(str(state.get("task")) for state in tasks.values() if isinstance(state, dict)) or None
