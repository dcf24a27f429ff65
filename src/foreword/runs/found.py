"""Finding run folders: below a folder, by what they were trained on and with, in order."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from foreword import status
from foreword.errors import ConfigError
from foreword.runs.one_run import DEFAULTS, Run, is_run, read_run

FOLDER = "runs"  # where runs are made, unless they are told another place
DEEPEST = 4  # levels below a folder that is searched
MOST_ENTRIES = 500_000  # files and folders that are looked at
Sort = Literal["time", "loss", "name"]
_AGO = re.compile(r"(\d{1,6})\s*([hdw])")
_HOURS = {"h": 1, "d": 24, "w": 168}


@dataclass
class Found:
    """runs: those that were found. notes: what could not be looked at, in words."""

    runs: list[Run] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find(
    folder: str | Path = FOLDER,
    text: str = "",
    *,
    method: str | None = None,
    base: str | None = None,
    data: str | None = None,
    since: str | datetime | None = None,
    sort: Sort = "time",
) -> list[Run]:
    """Return the runs in `folder` and up to four levels below, the newest first.

    text: words that must all be in a run's name, state, base, data, method or settings (`lr=0.05`). method: its name.
    base, data: a part of the name. since: a time, or a text such as 2026-01-31 or 7d; see `moment`.
    A damaged run is among them, and says in `problems` what can't be read. What can't be looked at is noted.
    Raises `ConfigError` if `folder` is not there, or for a time or an order that is none.
    """
    found = search([folder])
    for note in found.notes:
        status.note(note)
    return chosen(found.runs, text, method=method, base=base, data=data, since=since, sort=sort)


def search(folders: Sequence[str | Path]) -> Found:
    """Return every run in `folders` and below, each once. Raises `ConfigError` if one of them is not there."""
    for folder in folders:
        if not os.path.isdir(folder):
            raise ConfigError("folder", f"{folder} is not there, or is no folder; name one that holds runs")
    found = Found()
    for path in _run_folders([Path(folder) for folder in folders], found.notes):
        found.runs.append(read_run(path))
        if len(found.runs) % status.EVERY == 0:
            status.doing("reading runs", len(found.runs))
    return found


def chosen(
    runs: Iterable[Run],
    text: str = "",
    *,
    method: str | None = None,
    base: str | None = None,
    data: str | None = None,
    since: str | datetime | None = None,
    sort: str = "time",
) -> list[Run]:
    """Return those of `runs` that are asked for, in order; see `find`."""
    if sort not in ("time", "loss", "name"):
        raise ConfigError("sort", f"must be time, loss or name, not {sort!r:.40}")
    earliest = moment(since) if isinstance(since, str) else since
    if earliest is not None and earliest.tzinfo is None:
        earliest = earliest.replace(tzinfo=UTC)
    words = text.casefold().split()
    kept = [
        run
        for run in runs
        if (method is None or run.method.casefold() == method.casefold())
        and (base is None or _within(base, (run.base, run.settings.get("model"))))
        and (data is None or _within(data, (run.data, run.source)))
        and (earliest is None or (run.written is not None and run.written >= earliest))
        and (not words or _has(run, words))
    ]
    return _sorted(kept, sort)


def moment(text: str, now: datetime | None = None) -> datetime:
    """Return the time that `text` names: 2026-01-31, 2026-01-31 14:00 (UTC unless it says else), or 12h, 7d, 2w ago.

    Raises `ConfigError` if it names none.
    """
    if ago := _AGO.fullmatch(text.strip()):
        hours = int(ago[1]) * _HOURS[ago[2]]
        try:
            return (now or datetime.now(UTC)) - timedelta(hours=hours)
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise ConfigError("since", f"must be a date such as 2026-01-31, or 12h, 7d or 2w, not {text!r:.40}") from error
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _run_folders(folders: Sequence[Path], notes: list[str]) -> Iterator[Path]:
    """Yield the run folders, nearest first. Links are followed; each folder is looked at once, whatever leads to it.

    Nothing within a run is a run, and hidden folders are left out.
    """
    waiting = deque((folder, 0) for folder in folders)
    seen: set[tuple[int, int]] = set()
    left = MOST_ENTRIES
    while waiting:
        path, depth = waiting.popleft()
        try:
            place = path.stat()
            if (place.st_dev, place.st_ino) in seen:
                continue
            seen.add((place.st_dev, place.st_ino))
            with os.scandir(path) as listed:
                entries = list(islice(listed, left + 1))
        except OSError as error:
            notes.append(f"{path} can't be looked at: {error.strerror or error}")
            continue
        left -= len(entries)
        if left < 0:
            notes.append(f"more than {MOST_ENTRIES:,} files and folders; the rest is left out: name a smaller folder")
            return
        if is_run(path, [entry.name for entry in entries]):
            yield path
        elif depth < DEEPEST:
            waiting.extend((path / entry.name, depth + 1) for entry in entries if _is_folder(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.name.startswith(".") and entry.is_dir()
    except OSError:  # a link to itself
        return False


def _within(part: str, texts: Iterable[Any]) -> bool:
    return any(part.casefold() in text.casefold() for text in texts if isinstance(text, str))


def _has(run: Run, words: Sequence[str]) -> bool:
    """Whether each of the words is in what is known of a run. Settings at their defaults don't count."""
    changed = [f"{name}={value}" for name, value in run.settings.items() if value != DEFAULTS.get(name)]
    known = (str(run.path), run.state, run.base, run.task, run.data, run.method, *changed)
    told = "\n".join(known).casefold()
    return all(word in told for word in words)


def _sorted(runs: list[Run], sort: str) -> list[Run]:
    named = sorted(runs, key=lambda run: natural(str(run.path)))
    if sort == "loss":
        return sorted(named, key=lambda run: (run.best_loss is None, run.best_loss or 0.0))
    if sort == "time":
        return sorted(named, key=lambda run: run.written or datetime.min.replace(tzinfo=UTC), reverse=True)
    return named


def natural(text: str) -> list[tuple[bool, int, str]]:
    """Return a key by which run-2 comes before run-10."""
    parts = re.split(r"(\d{1,18})", text)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
