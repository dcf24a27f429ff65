"""Starting a task's head from a trained one."""

from __future__ import annotations

from typing import Any

from foreword.config import TrainConfig
from foreword.errors import ConfigError
from foreword.tasks import Mixture, Task
from foreword.tasks.saved import choose, put, read_states, split_name


def start_head(task: Task[Any], config: TrainConfig) -> None:
    """Put the head saved at `config.init_head` into the task, if one is named.

    Raises `ConfigError` for a head that doesn't fit, or for any on a sharded base.
    """
    if config.shard_base and task.head is not None:
        raise ConfigError("shard_base", f"{task.name} reads the states of a whole base; leave shard_base out")
    if config.init_head is None:
        return
    if isinstance(task, Mixture):
        raise ConfigError("init_head", "goes with a single task, not with a mixture")
    folder, name_given = split_name(config.init_head)
    states, tensors = read_states(folder)
    name = choose(states, name_given, folder)
    if (saved := states[name].get("labels")) != task.labels:
        raise ConfigError("init_head", f"was trained for the classes {saved}, but these rows have {task.labels}")
    put(task, tensors, name)
