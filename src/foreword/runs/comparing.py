"""Runs side by side: the settings that differ, the results, and the losses by step."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.errors import ConfigError
from foreword.runs.history import HISTORY, Curves, curves
from foreword.runs.one_run import DEFAULTS, PREFIX, Run, read, record
from foreword.shown import Shown

MOST = 12  # runs that are compared at once
LEFT_OUT = ("output", "resume")  # they say where a run lies, not what it is
NOTHING = "–"
_MEASURED = ("validation_rows", "task", "max_tokens")  # settings that change what a validation loss is the mean of


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """Some runs. names: short ones, no two alike. settings: name → each run's value, where they differ. shared: name →
    value, where they don't. results: name → each run's, in words. cautions: why losses may not be comparable."""

    runs: tuple[Run, ...]
    names: tuple[str, ...]
    settings: Mapping[str, tuple[Any, ...]]
    shared: Mapping[str, Any]
    results: Mapping[str, tuple[str, ...]]
    curves: tuple[Curves, ...]
    cautions: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        losses = [
            {"training": [list(point) for point in each.training], "validation": [list(p) for p in each.validation]}
            for each in self.curves
        ]
        runs = [run.facts() | {"label": name} for run, name in zip(self.runs, self.names, strict=True)]
        return {
            "runs": [run | {"curves": each} for run, each in zip(runs, losses, strict=True)],
            "settings": {name: list(values) for name, values in self.settings.items()},
            "results": {name: list(values) for name, values in self.results.items()},
            "cautions": list(self.cautions),
        }

    def _shown(self) -> tuple[str, dict[str, Any]]:
        losses = self.results.get("validation loss", ())
        each = ", ".join(f"{name} {loss}" for name, loss in zip(self.names, losses, strict=False))
        title = f"Comparison of {len(self.runs)} runs, {len(self.settings)} settings differ"
        return title, {"validation loss": each, "differ": ", ".join(self.settings)}


def compare(*folders: str | Path) -> Comparison:
    """Compare two to twelve runs by their folders, or by the folders of their prefixes.

    Raises `ConfigError` for fewer or more, for one that is given twice, and for a folder that is no run's.
    """
    if not 2 <= len(folders) <= MOST:
        raise ConfigError("runs", f"two to {MOST} are compared, not {len(folders)}; name their folders")
    runs = tuple(read(_run_folder(Path(folder))) for folder in folders)
    places = [os.path.realpath(run.path) for run in runs]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise ConfigError("runs", f"{folders[number]} is given twice")
    differing, shared = _settings(runs)
    records = [record(run.path) for run in runs]
    losses = tuple(curves(run.path / HISTORY) if (run.path / HISTORY).exists() else Curves() for run in runs)
    return Comparison(
        runs, _names(runs), differing, shared, _results(runs, records, losses), losses,
        tuple(_cautions(runs, records, differing)),
    )  # fmt: skip


def value_texts(values: Sequence[Any], most: int = 60) -> tuple[str, ...]:
    """Return the values of a setting in words of at most `most` characters, from where long ones begin to differ."""
    texts = [_value_text(value) for value in values]
    differ = len(set(texts)) > 1 and max(map(len, texts)) > most
    alike = _alike(min(texts), max(texts)) if differ else 0
    start = alike - most // 4 if alike > most // 2 else 0
    shown = ["…" + text[start:] if start else text for text in texts]
    return tuple(text if len(text) <= most else text[: most - 1] + "…" for text in shown)


def _alike(one: str, other: str) -> int:
    """Return how many first characters two texts share."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (mine, its) in pairs if mine != its), min(len(one), len(other)))


def _value_text(value: Any) -> str:
    """Return text as it is, unless its white space would be lost in a table; anything else as JSON."""
    if value is None or value == "":
        return NOTHING
    plain = isinstance(value, str) and value == " ".join(value.split())
    return str(value) if plain else json.dumps(value, ensure_ascii=False)


def _run_folder(path: Path) -> Path:
    return path.parent if path.name == PREFIX and not (path / HISTORY).exists() else path


def _names(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return each run's name; its path where others have the same name."""
    names = [run.name for run in runs]
    return tuple(run.name if names.count(run.name) == 1 else str(run.path) for run in runs)


def _settings(runs: Sequence[Run]) -> tuple[dict[str, tuple[Any, ...]], dict[str, Any]]:
    """Return (name → values, where they differ, name → value, where they don't)."""
    known = [DEFAULTS | dict(run.settings) if run.settings else {} for run in runs]
    names = dict.fromkeys([*DEFAULTS, *(name for settings in known for name in settings)])
    differing, shared = {}, {}
    for name in names:
        values = tuple(settings.get(name) for settings in known)
        if name in LEFT_OUT:
            continue
        if all(_same(value, values[0]) for value in values):
            shared[name] = values[0]
        else:
            differing[name] = values
    return differing, shared


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same; 1 and true are not."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _results(
    runs: Sequence[Run], records: Sequence[Mapping[str, Any]], losses: Sequence[Curves]
) -> dict[str, tuple[str, ...]]:
    """Return what the runs came to, in words; only what at least one of them has."""
    metrics = dict.fromkeys(name for run in runs for name in run.metrics)
    rows: dict[str, list[str]] = {
        "state": [run.state for run in runs],
        "steps": [run.progress() for run in runs],
        "validation loss": [run.losses() for run in runs],
        "best at step": ["" if run.best_step is None else f"{run.best_step:,}" for run in runs],
        "last training loss": ["" if run.last_loss is None else f"{run.last_loss:.4f}" for run in runs],
        **{f"{name} (best)": [_number(run.metrics.get(name)) for run in runs] for name in metrics},
        "training rows": [_number(told.get("training_rows")) for told in records],
        "trained parameters": [_number(told.get("trained_parameters")) for told in records],
        "prefix": ["" if run.prefix_bytes is None else f"{run.prefix_bytes / 1000:,.0f} KB" for run in runs],
        "target tokens/s": [_number(each.speed) for each in losses],
        "last written": ["" if run.written is None else f"{run.written:%Y-%m-%d %H:%M} UTC" for run in runs],
        "problems": ["; ".join(run.problems) for run in runs],
    }
    return {name: tuple(text or NOTHING for text in texts) for name, texts in rows.items() if any(texts)}


def _number(value: Any) -> str:
    if type(value) is int:
        return f"{value:,}" if abs(value) < 10**15 else ""
    return f"{value:,.4g}" if type(value) is float else ""


def _cautions(runs: Sequence[Run], records: Sequence[Mapping[str, Any]], differing: Mapping[str, Any]) -> list[str]:
    """Return why the losses of the runs may not be comparable, as far as settings and records tell."""
    told = []
    if len({run.base for run in runs}) > 1:
        told.append("the bases differ: a loss is per token, and other bases may have other tokens")
    digests = {name: {_digest(each, name) for each in records} - {None} for name in ("training", "validation")}
    if len(digests["validation"]) > 1:
        told.append("the held-out rows differ: the validation losses are of other rows")
    elif measured := [name for name in _MEASURED if name in differing]:
        told.append(f"{' and '.join(measured)} differ: the validation losses may be of other rows or tokens")
    if len(digests["training"]) > 1 and "data" not in differing:
        told.append("the training rows differ, although the settings name the same data")
    return told


def _digest(told: Mapping[str, Any], name: str) -> str | None:
    """Return the digest of a run's rows, if its record has one."""
    data = told.get("data")
    rows = data.get(name) if isinstance(data, dict) else None
    digest = rows.get("digest") if isinstance(rows, dict) else None
    return digest if isinstance(digest, str) else None
