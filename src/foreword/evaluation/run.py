"""`evaluate`: measure a base with or without a prefix on a file of examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foreword import status
from foreword.base import Base
from foreword.config import EvalConfig
from foreword.data import BadRow, Reading
from foreword.data.examples import room
from foreword.errors import ConfigError
from foreword.evaluation.task import trained_task
from foreword.extras import installed, missing
from foreword.prefix import Prefix
from foreword.prefix.places import located
from foreword.shown import Shown
from foreword.tasks import TASKS, Measuring, Task, summed_loss

NEEDS = {
    "bleu": "sacrebleu", "chrf": "sacrebleu", "rouge_l": "rouge_score", "macro_f1": "sklearn", "entity_f1": "seqeval",
}  # fmt: skip
Progress = Callable[[str, int, int], None]  # what is done, rows done, rows in all


@dataclass(frozen=True, repr=False)
class EvalResult(Shown):
    """metrics: name → number. signatures: sacrebleu's, where it was used. texts: the answers, in row order
    (empty if no metric needed them). rows, target_tokens: what was measured; target_tokens counts losses."""

    metrics: dict[str, float]
    signatures: dict[str, str]
    texts: list[str]
    rows: int
    target_tokens: int
    bad_rows: tuple[BadRow, ...] = ()

    def _shown(self) -> tuple[str, dict[str, Any]]:
        left_out = f", {len(self.bad_rows)} left out" if self.bad_rows else ""
        title = f"EvalResult of {self.rows:,} rows, {self.target_tokens:,} target tokens{left_out}"
        return title, {"metrics": "  ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())}


def evaluate(
    base: Base,
    config: EvalConfig,
    prefix: Prefix | None = None,
    progress: Progress | None = None,
) -> EvalResult:
    """Measure `base` on `config.data`, with `prefix` or the one saved at `config.prefix`, if any.

        >>> result = foreword.evaluate(base, foreword.EvalConfig(data="rows.jsonl", metrics=["loss"]), prefix)
        >>> result.rows
        20

    A prefix's own template is used unless the config names one. Text metrics use batched greedy
    generation. progress: called with (what, rows done, rows in all).
    Raises `DataError`, `PrefixFormatError`, `PrefixMismatchError`.
    """
    if config.prefix is None:
        return _evaluated(base, config, prefix, progress)
    with located(config.prefix) as folder:
        return _evaluated(base, replace(config, prefix=folder), prefix or Prefix.load(folder), progress)


def _evaluated(base: Base, config: EvalConfig, prefix: Prefix | None, progress: Progress | None) -> EvalResult:
    task = trained_task(base, config, prefix)
    metrics = config.metrics or measurable(task.metrics)
    for metric in metrics:
        if metric not in task.metrics:
            raise ConfigError(
                "metrics", f"{metric!r} is not known to {task.name}; choose from {', '.join(task.metrics)}"
            )
    length = 0 if prefix is None else prefix.length
    reading = Reading(
        max_tokens=config.max_tokens or room(base, length),
        max_bad_rows=config.max_bad_rows,
        limit=config.rows,
        split="validation",
    )
    items, bad = task.load(config.data, reading)
    measuring = Measuring(config.batch_size, config.max_new_tokens)
    result = evaluate_items(task, items, prefix, metrics, measuring, progress)
    return replace(result, bad_rows=tuple(bad))


def measurable(metrics: Sequence[str]) -> tuple[str, ...]:
    """Return those of `metrics` whose packages are installed, and say which are left out."""
    left_out = [metric for metric in metrics if metric in NEEDS and not installed(NEEDS[metric])]
    if left_out:
        status.note(f"{', '.join(left_out)} left out: pip install 'foreword[eval]' to measure them")
    return tuple(metric for metric in metrics if metric not in left_out)


def require_metrics(metrics: Sequence[str]) -> None:
    """Raise `ConfigError` for a metric that no task has, `DependencyError` for one whose package is missing.

    It needs no base, which may take long to load.
    """
    known = list(dict.fromkeys(metric for task in TASKS.values() for metric in task.metrics))
    for metric in metrics:
        if metric not in known:
            raise ConfigError("metrics", f"{metric!r} is not known; choose from {', '.join(known)}")
        if metric in NEEDS and not installed(NEEDS[metric]):
            raise missing(NEEDS[metric], f"to measure {metric}")


def evaluate_items(
    task: Task[Any],
    items: Sequence[Any],
    prefix: Prefix | None,
    metrics: Sequence[str],
    measuring: Measuring | None = None,
    progress: Progress | None = None,
) -> EvalResult:
    """`evaluate` for items that are already read. measuring: batch size, and for written answers their length."""
    measuring = measuring or Measuring()
    count = sum(task.units(item) for item in items)
    values: dict[str, float] = {}
    from_loss = set(task.derived(0.0)) & set(metrics)
    if from_loss:
        advance = _counter("loss", len(items), progress)
        total, count = summed_loss(task, items, prefix, measuring.batch_size, advance)
        values = task.derived(total / count)
    texts: list[str] = []
    signatures: dict[str, str] = {}
    if others := [name for name in metrics if name not in from_loss]:
        told = replace(measuring, advance=_counter("answers", len(items), progress))
        measured = task.measure(prefix, items, others, told)
        values |= measured.values
        texts, signatures = measured.texts, measured.signatures
    return EvalResult({name: values[name] for name in metrics}, signatures, texts, len(items), count)


def _counter(what: str, total: int, progress: Progress | None) -> Callable[[int], None]:
    """Turns numbers of finished rows into calls of `progress`, and tells them."""
    done = 0
    status.doing(f"measuring {what}", 0, total)

    def step(count: int) -> None:
        nonlocal done
        done += count
        status.doing(f"measuring {what}", done, total)
        if progress is not None:
            progress(what, done, total)

    return step
