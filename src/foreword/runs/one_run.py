"""One run folder, read without PyTorch: its settings, how far it came, and what it came to."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from foreword.config import TrainConfig
from foreword.errors import ConfigError
from foreword.files import Unreadable, read_json
from foreword.runs.history import HISTORY, Summary, summarise
from foreword.settings import to_dict
from foreword.shown import Shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CONFIG, CHECKPOINTS, LOCK, PREFIX, MANIFEST = "config.json", "checkpoints", "run.lock", "prefix", "manifest.json"
State = Literal["finished", "stopped early", "going on", "broken off", "failed", "damaged"]
DEFAULTS = to_dict(TrainConfig())
_OF_A_RUN = {"model", "data", "method", "length", "steps"}  # settings by which config.json is a run's
_MOST_FILES = 100  # of a prefix; real ones have two
_LOCAL = re.compile(r"[./~]|[A-Za-z]:[\\/]")  # how the path of a file or folder begins


@dataclass(frozen=True, repr=False)
class Run(Shown):
    """A run folder. step: updates done. Losses are validation losses in nats, but for `last_loss` of the last update.

    settings: as recorded in config.json. written: when something of it was last written. metrics: other numbers that
    the best validation recorded. prefix_bytes: size of the saved prefix, None without one. problems: what could not
    be read. state: finished, stopped early (patience ran out), going on, broken off (it can be resumed), failed (a
    loss was not finite, or it ended before its first checkpoint), damaged (its settings can't be read).
    """

    path: Path
    state: State
    settings: Mapping[str, Any] = field(default_factory=dict)
    written: datetime | None = None
    step: int | None = None
    last_loss: float | None = None
    first_loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    prefix_bytes: int | None = None
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.name or Path(os.path.abspath(self.path)).name

    @property
    def base(self) -> str:
        """The base's hub id, or the last component of its path."""
        return _short(self._setting("model"))

    @property
    def data(self) -> str:
        """The training data's id, or the last component of its path; of a mixture the names of its tasks."""
        mixture = self._setting("mixture")
        return ", ".join(map(str, mixture)) if mixture and isinstance(mixture, Mapping) else _short(self.source)

    @property
    def source(self) -> Any:
        return self._setting("data")

    @property
    def task(self) -> str:
        mixed = bool(self._setting("mixture"))
        return "mixture" if mixed else _text(self._setting("task"))

    @property
    def method(self) -> str:
        return _text(self._setting("method"))

    @property
    def length(self) -> int | None:
        """Virtual tokens."""
        return _whole(self._setting("length"))

    @property
    def steps(self) -> int | None:
        """How many updates it was to make."""
        return _whole(self._setting("steps"))

    def _setting(self, name: str) -> Any:
        """Return a setting; one that is newer than the run was at its default."""
        return self.settings.get(name, DEFAULTS[name]) if self.settings else None

    def facts(self) -> dict[str, Any]:
        """Return all that is known, as JSON values."""
        names = ("name", "state", "base", "task", "data", "method", "length", "step", "steps", "first_loss",
                 "best_loss", "best_step", "last_loss", "prefix_bytes")  # fmt: skip
        return {
            "path": str(self.path),
            **{name: getattr(self, name) for name in names},
            "written": None if self.written is None else self.written.isoformat(timespec="seconds"),
            "metrics": dict(self.metrics),
            "problems": list(self.problems),
            "settings": dict(self.settings),
        }

    def progress(self) -> str:
        """Return the updates that were made, of how many: `120/900`."""
        return "/".join("?" if count is None else f"{count:,}" for count in (self.step, self.steps))

    def losses(self) -> str:
        """Return the first and the best validation loss: `2.3100 → 1.2040`; empty if nothing was measured."""
        known = [loss for loss in (self.first_loss, self.best_loss) if loss is not None]
        return " → ".join(f"{loss:.4g}" if abs(loss) >= 1000 else f"{loss:.4f}" for loss in known)

    def _shown(self) -> tuple[str, dict[str, Any]]:
        loss = f", validation loss {self.losses()}" if self.losses() else ""
        facts = {
            "made of": f"{self.method}, length {self.length}, on {self.base}, task {self.task}, data {self.data}",
            "path": self.path,
            "problem": "; ".join(self.problems),
        }
        title = f"Run {self.name}: {self.state}, step {self.progress()}{loss}"
        return title, {name: value for name, value in facts.items() if value}


def read(path: str | Path) -> Run:
    """Return the run in the folder `path`, whatever state its files are in. Raises `ConfigError` if it holds no run."""
    folder = Path(path)
    try:
        names = os.listdir(folder)
    except (OSError, ValueError) as error:
        raise ConfigError("run", f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error
    if not is_run(folder, names):
        raise ConfigError("run", f"{path} is no run folder: it has neither {HISTORY} nor the {CONFIG} of a run")
    return read_run(folder)


def is_run(folder: Path, names: Iterable[str]) -> bool:
    """Whether `folder`, which holds `names`, is a run's, damaged or not. Models have a config.json too."""
    found = set(names)
    if HISTORY in found or CONFIG not in found:
        return HISTORY in found
    return bool(found & {CHECKPOINTS, LOCK}) or _settings(folder)[0].keys() >= _OF_A_RUN


def read_run(folder: Path) -> Run:
    """Return the run in `folder`; what can't be read is among its problems."""
    settings, problem = _settings(folder)
    told = summarise(folder / HISTORY) if os.path.lexists(folder / HISTORY) else Summary()
    problems = [*([problem] if problem else []), *told.problems]
    if problem and (recorded := record(folder).get("config")) and isinstance(recorded, dict):
        settings = recorded
    return Run(
        path=folder,
        state="damaged" if problem else _state(folder, settings, told),
        settings=settings,
        written=_written(folder),
        step=told.step,
        last_loss=told.last_loss,
        first_loss=told.first_loss,
        best_loss=told.best_loss,
        best_step=told.best_step,
        metrics=told.metrics,
        prefix_bytes=_size(folder / PREFIX),
        problems=tuple(problems),
    )


def record(folder: Path) -> dict[str, Any]:
    """Return the record of the prefix in a run's folder; {} if there is none or it can't be read."""
    try:
        manifest = read_json(folder / PREFIX / MANIFEST)
    except Unreadable:
        return {}
    found = manifest.get("record") if isinstance(manifest, dict) else None
    return found if isinstance(found, dict) else {}


def _settings(folder: Path) -> tuple[dict[str, Any], str]:
    """Return (settings, what is wrong with their file)."""
    try:
        found = read_json(folder / CONFIG)
    except Unreadable as error:
        return {}, f"{CONFIG} {error}"
    if not isinstance(found, dict) or not isinstance(found.get("method"), str):
        return {}, f"{CONFIG} holds no settings of a run"
    return found, ""


def _state(folder: Path, settings: Mapping[str, Any], told: Summary) -> State:
    step, steps, patience = told.step or 0, _whole(settings.get("steps")), _whole(settings.get("patience"))
    if _is_held(folder / LOCK):
        return "going on"
    if told.failed_at is not None and told.failed_at > step:
        return "failed"
    if steps is not None and step >= steps:
        return "finished"
    if patience is not None and told.stale >= patience > 0:
        return "stopped early"
    return "broken off" if os.path.isdir(folder / CHECKPOINTS) or step else "failed"


def _is_held(lock: Path) -> bool:
    """Whether a living run holds the lock of its folder. It is tried without waiting, and given back at once."""
    if not os.path.lexists(lock):
        return False
    if fcntl is None:
        return True
    try:
        handle = os.open(lock, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # nothing can be locked here
        return False
    finally:
        os.close(handle)
    return False


def _written(folder: Path) -> datetime | None:
    """Return when settings, history or prefix were last written."""
    times = []
    for file in (folder / CONFIG, folder / HISTORY, folder / PREFIX / MANIFEST):
        try:
            times.append(datetime.fromtimestamp(file.stat().st_mtime, UTC))
        except (OSError, OverflowError, ValueError):
            continue
    return max(times, default=None)


def _size(folder: Path) -> int | None:
    """Return the bytes of the files in `folder`; None if there is no saved prefix."""
    try:
        with os.scandir(folder) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in islice(entries, _MOST_FILES) if entry.is_file()}
    except OSError:
        return None
    return sum(sizes.values()) if MANIFEST in sizes else None


def _short(source: Any) -> str:
    """Return the last component of a path; an id stays as it is."""
    text = _text(source)
    local = _LOCAL.match(text) or "\\" in text or text.count("/") > 1
    return (re.split(r"[\\/]", text.rstrip("\\/"))[-1] or text) if local else text


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else "?"


def _whole(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 10**12 else None
