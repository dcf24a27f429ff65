"""Tasks: what a base has to do, with or without a prefix. The registry is closed: a task is one class and one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foreword.base import Base
from foreword.base.rendering import require_tokenizer
from foreword.errors import ConfigError
from foreword.tasks.base import Measurement, Measuring, PromptItem, Task, TaskSettings, summed_loss
from foreword.tasks.lm import LanguageModelling
from foreword.tasks.mixture import Mixture
from foreword.tasks.predictions import Predictions
from foreword.tasks.qa import QuestionAnswering
from foreword.tasks.sequence import MultipleChoice, SequenceClassification
from foreword.tasks.token_cls import TokenClassification
from foreword.tasks.verbalizer import Verbalizer

TASKS: dict[str, type[Task[Any]]] = {
    kind.name: kind
    for kind in (
        LanguageModelling,
        SequenceClassification,
        TokenClassification,
        MultipleChoice,
        QuestionAnswering,
        Verbalizer,
    )
}


def make_task(base: Base, name: str, settings: TaskSettings) -> Task[Any]:
    """Make the task called `name` on `base`. Raises `ConfigError` for an unknown name or wrong options."""
    if name not in TASKS:
        raise ConfigError("task", f"{name!r} is not known; choose from {', '.join(TASKS)}")
    require_tokenizer(base.tokenizer, str(base.name))
    return TASKS[name](base, settings)


def settings_of(values: Mapping[str, Any]) -> TaskSettings:
    """Make the settings of a task from a config's plain values."""
    return TaskSettings(
        values.get("template"),
        values.get("input_field"),
        values.get("target_field"),
        dict(values.get("task_options") or {}),
        bool(values.get("packing", True)),
        values.get("shape") or "auto",
        values.get("turns") or "all",
    )


__all__ = [
    "TASKS",
    "LanguageModelling",
    "Measurement",
    "Measuring",
    "Mixture",
    "Predictions",
    "PromptItem",
    "Task",
    "TaskSettings",
    "make_task",
    "settings_of",
    "summed_loss",
]
