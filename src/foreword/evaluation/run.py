"""`evaluate`: measure a base with or without a prefix on a file of examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from foreword.config import TEXT_METRICS, EvalConfig
from foreword.data import BadRow, Example
from foreword.errors import ConfigError
from foreword.evaluation import metrics as scores
from foreword.evaluation.task import trained_task
from foreword.models import Base
from foreword.models.generation import generate_ids
from foreword.prefix import Prefix
from foreword.tasks import LanguageModelling, Task, summed_loss
from foreword.tasks.lm import mean_loss


@dataclass(frozen=True)
class EvalResult:
    """metrics: name → number. signatures: sacrebleu's, where it was used. texts: the answers, in row order
    (empty if no metric needed them). rows, target_tokens: what was measured; target_tokens counts losses."""

    metrics: dict[str, float]
    signatures: dict[str, str]
    texts: list[str]
    rows: int
    target_tokens: int
    bad_rows: tuple[BadRow, ...] = ()


def evaluate(
    base: Base,
    config: EvalConfig,
    prefix: Prefix | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> EvalResult:
    """Measure `base` on `config.data`, with `prefix` or the one saved at `config.prefix`, if any.

    A prefix's own template is used unless the config names one. Text metrics use batched greedy
    generation. progress: called with (what, rows done, rows in all).
    Raises `DataError`, `PrefixFormatError`, `PrefixMismatchError`.
    """
    if prefix is None and config.prefix is not None:
        prefix = Prefix.load(config.prefix)
    task = trained_task(base, config, prefix)
    metrics = config.metrics or task.metrics
    for metric in metrics:
        if metric not in task.metrics:
            raise ConfigError("metrics", f"{metric!r} is none of {task.name}: choose from {', '.join(task.metrics)}")
    length = 0 if prefix is None else prefix.length
    items, bad = task.load(
        config.data,
        max_tokens=config.max_tokens or base.max_positions - length,
        max_bad_rows=config.max_bad_rows,
        limit=config.rows,
        split="validation",
    )
    if isinstance(task, LanguageModelling):
        stops = task.renderer.stop_ids(base.model.generation_config)
        result = evaluate_examples(
            base, items, prefix, metrics, stops, config.max_new_tokens, config.batch_size, progress
        )
    else:
        result = evaluate_items(task, items, prefix, metrics, config.batch_size, progress)
    return EvalResult(**(vars(result) | {"bad_rows": tuple(bad)}))


def evaluate_items(
    task: Task,
    items: Sequence[Any],
    prefix: Prefix | None,
    metrics: Sequence[str],
    batch_size: int = 16,
    progress: Callable[[str, int, int], None] | None = None,
) -> EvalResult:
    """`evaluate` for items of any task but language modelling."""
    count = sum(task.units(item) for item in items)
    values: dict[str, float] = {}
    if "loss" in metrics:
        total, count = summed_loss(task, items, prefix, batch_size, _counter("loss", len(items), progress))
        values["loss"] = total / count
    texts: list[str] = []
    if others := [name for name in metrics if name != "loss"]:
        measured = task.measure(prefix, items, others, batch_size, _counter("answers", len(items), progress))
        values |= measured.values
        texts = measured.texts
    return EvalResult({name: values[name] for name in metrics}, {}, texts, len(items), count)


def evaluate_examples(
    base: Base,
    examples: Sequence[Example],
    prefix: Prefix | None,
    metrics: Sequence[str],
    stops: list[int],
    max_new_tokens: int = 64,
    batch_size: int = 16,
    progress: Callable[[str, int, int], None] | None = None,
    clean: Callable[[str], str] = str.strip,
) -> EvalResult:
    """`evaluate` on examples that are already read. stops: token ids that end an answer. clean: what is
    taken of a generated text."""

    def report(what: str) -> Callable[[int], None]:
        return _counter(what, len(examples), progress)

    values: dict[str, float] = {}
    signatures: dict[str, str] = {}
    texts: list[str] = []
    tokens = sum(len(example.target_ids) for example in examples)
    if "loss" in metrics or "perplexity" in metrics:
        loss, tokens = mean_loss(base, examples, prefix, batch_size, report("loss"))
        values |= {"loss": loss, "perplexity": math.exp(loss)}
    if any(name in metrics for name in TEXT_METRICS):
        answers = _answers(base, examples, prefix, stops, max_new_tokens, batch_size, report("generation"))
        texts = [clean(answer) for answer in answers]
        references = [example.references for example in examples]
        values["bleu"], signatures["bleu"] = scores.bleu(texts, references)
        values["chrf"], signatures["chrf"] = scores.chrf(texts, references)
        values["rouge_l"] = scores.rouge_l(texts, references)
        values["exact_match"] = scores.exact_match(texts, references)
    chosen = {name: values[name] for name in metrics}
    named = {name: text for name, text in signatures.items() if name in metrics}
    return EvalResult(chosen, named, texts, len(examples), tokens)


def _counter(what: str, total: int, progress: Callable[[str, int, int], None] | None) -> Callable[[int], None]:
    """Turns numbers of finished rows into calls of `progress`."""
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(what, done, total)

    return step


def _answers(
    base: Base,
    examples: Sequence[Example],
    prefix: Prefix | None,
    stops: list[int],
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[int], None],
) -> list[str]:
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    texts = [""] * len(examples)
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index].prompt_ids))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids = [list(examples[index].prompt_ids) for index in chosen]
        for index, answer in zip(chosen, generate_ids(base, ids, [prefix] * len(chosen), stops, options), strict=True):
            texts[index] = base.tokenizer.decode(answer, skip_special_tokens=True)
        progress(len(chosen))
    return texts
