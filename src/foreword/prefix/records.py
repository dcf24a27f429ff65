"""What a prefix's record may say, and where the rest is.

A saved prefix is meant to be published. Its record says how it was made, so that a run can be understood and repeated,
but it holds no path and no text of a user's, except the template, names of fields and the words of a task's options,
which are needed to use it. The run folder keeps all settings for its owner: `config.json` and the checkpoints.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from foreword.config import DEFAULT_MODEL, TrainConfig
from foreword.errors import PrefixFormatError
from foreword.files import Unreadable, read_json
from foreword.prefix.value import Prefix
from foreword.settings import defaults, free_on_resume

RUN_CONFIG = "config.json"  # of the run folder that a prefix lies in
_SOURCES = ("data", "validation")
_LEFT_OUT = ("output", "store", "resume", "trackers")
# Settings that are kept as they are. Of others only numbers, truth values and None are, also of settings that are not
# known here, so that a new setting with a path in it is left out.
_KEPT = {
    "task", "task_options", "template", "input_field", "target_field", "shape", "turns", "method", "objective", "slots",
    "lengths", "init", "dtype", "quantise", "device", "scheduler", "mixed_precision", "train", "prefix_dtype",
}  # fmt: skip


def public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run, as JSON values, without paths and without texts that nothing needs.

    A base in a local folder becomes `public_name`. Rows are named only if they are a public Datasets id. `init_text`,
    which often holds rows, is left out; see `text_digest`.
    """
    kept: dict[str, Any] = {}
    for name, value in settings.items():
        if name in _LEFT_OUT:
            continue
        if name in _KEPT or value is None or isinstance(value, bool | int | float):
            kept[name] = value
        elif name == "model":
            kept[name] = public_name(str(value))
        elif name in _SOURCES and not is_local_data(str(value)):
            kept[name] = value
        elif name == "options":
            kept[name] = _without_paths(value)
        elif name == "mixture" and isinstance(value, Mapping):
            kept[name] = {task: public_settings(entry) for task, entry in value.items() if isinstance(entry, Mapping)}
    return kept


def public_prefix(prefix: Prefix) -> Prefix:
    """Return `prefix` with its record and the name of its base as they are published.

    A prefix of an older version has the private settings in its record; one of this version stays as it is.
    """
    source = None if prefix.base.source is None else public_name(prefix.base.source)
    record = dict(prefix.record)
    if (config := recorded_config(record)) and "data" not in record:
        sources = {"training": config.get("data"), "validation": config.get("validation")}
        record["data"] = {
            name: {"name": data_name(source) if isinstance(source, str) and source else None}
            for name, source in sources.items()
        }
    if config:
        record["config"] = public_settings(config)
    return replace(prefix, base=replace(prefix.base, source=source), record=record)


def public_name(model: str) -> str:
    """Return the name of a base without its place: a hub id or a bundled name, or `./name` of a file or folder."""
    return f"./{file_name(model)}" if is_local(model) else model


def file_name(path: str) -> str:
    """Return the last component of a path, also of one written on Windows."""
    if "\\" in path:
        return re.split(r"[\\/]", path.rstrip("\\/"))[-1]
    return os.path.basename(os.path.abspath(os.path.expanduser(path)))


def data_name(source: str) -> str:
    """Return a data source without its place: a Datasets id, or the last component of a file or folder."""
    return file_name(source) if is_local_data(source) else source


def text_digest(text: str) -> dict[str, Any]:
    """Return what a record says of a text that it doesn't hold: its length and SHA-256."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return {"characters": len(text), "digest": f"sha256:{digest}"}


def is_local(model: str) -> bool:
    """Return True if `model` names a file or folder rather than a hub id or a bundled name."""
    if model == DEFAULT_MODEL:
        return False
    return _looks_local(model) or model.count("/") > 1 or model.endswith(".gguf") or os.path.isdir(model)


def is_local_data(source: str) -> bool:
    """Return True if `source` names a file or folder of rows rather than a Datasets id."""
    return _looks_local(source) or bool(Path(source).suffix) or os.path.exists(source)


def recorded_config(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in a record; {} if it has none."""
    config = record.get("config")
    return dict(config) if isinstance(config, Mapping) else {}


def recorded_template(record: Mapping[str, Any]) -> str | None:
    """Return the template in a record. Raises `PrefixFormatError` if it is no text."""
    template = record.get("template")
    if not isinstance(template, str | None):
        raise PrefixFormatError(f"the record's template must be text, not {template!r:.60}")
    if template is not None and re.search("[\ud800-\udfff]", template):
        raise PrefixFormatError("the record's template holds half a surrogate pair, which is not text")
    return template


def run_settings(folder: str | Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of the run in whose folder the prefix `folder` lies, from its `config.json`.

    {} if there is no such file, or if it is of another run: every setting that `record` has must be the same in it,
    but for those that may change when a run goes on.
    """
    recorded = public_settings(recorded_config(record))
    try:
        found = read_json(Path(folder).absolute().parent / RUN_CONFIG)
    except Unreadable:
        return {}
    if not recorded or not isinstance(found, dict):
        return {}
    known = defaults(TrainConfig)
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()} | found
    public = public_settings(settings)
    compared = [name for name in recorded if name in known and name not in (*_SOURCES, *free_on_resume(TrainConfig))]
    same = all(name in public and public[name] == recorded[name] for name in compared)
    return settings if same and "method" in found and "method" in recorded else {}


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or "\\" in name or bool(re.match(r"[A-Za-z]:/|file:", name))


def _without_paths(value: Any) -> Any:
    """Return `value` with each text in it that is a path cut to its last component."""
    if isinstance(value, Mapping):
        return {name: _without_paths(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(entry) for entry in value]
    return file_name(value) if isinstance(value, str) and (_looks_local(value) or "/" in value) else value
