"""Which task an evaluation asks: a trained one's, or the one its settings name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foreword.base import Base
from foreword.config import EvalConfig
from foreword.data.readers import read_rows
from foreword.data.rows import Row
from foreword.errors import ConfigError
from foreword.prefix import Prefix
from foreword.tasks import Task, TaskSettings, make_task, settings_of
from foreword.tasks.saved import MANIFEST, choose, fill, read_states, split_name


def trained_task(base: Base, config: EvalConfig, prefix: Prefix | None) -> Task[Any]:
    """The task to evaluate: that of `config.head`, of the head beside the prefix, or `config.task`.

    Raises `ConfigError` or `PrefixFormatError`.
    """
    head = config.head or _beside(config.prefix)
    if head is not None:
        folder, wanted = split_name(head)
        states, tensors = read_states(folder)
        name = choose(states, wanted, folder)
        state = states[name]
        if config.task not in ("lm", state.get("task")):
            raise ConfigError("task", f"the head in {folder} is of {state.get('task')}, not {config.task}")
        settings = TaskSettings(
            config.template or state.get("template"),
            config.input_field or state.get("input_field"),
            config.target_field or state.get("target_field"),
            state.get("options") or {},
        )
        task = make_task(base, str(state.get("task")), settings)
        fill(task, state, tensors, name)
        return task
    template = config.template or (None if prefix is None else prefix.record.get("template"))
    task = make_task(base, config.task, settings_of(vars(config) | {"template": template}))
    task.learn(row.fields for row in read_rows(config.data) if isinstance(row, Row))
    if task.head is not None:
        raise ConfigError("head", f"{task.name} needs a trained one; name the head/ that a run left beside its prefix")
    return task


def _beside(prefix: str | None) -> str | None:
    """The head that a run left beside its prefix."""
    if prefix is None or not (folder := Path(prefix).absolute().parent / "head").joinpath(MANIFEST).is_file():
        return None
    return str(folder)
