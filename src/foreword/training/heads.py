"""Training a task's head beside the prefix."""

from __future__ import annotations

from torch import nn

from foreword.config import TrainConfig
from foreword.errors import ConfigError
from foreword.methods import Producer
from foreword.methods.base import Around, Group
from foreword.tasks import Mixture, Task
from foreword.tasks.saved import choose, put, read_states, split_name


class WithHead(Around):
    """A method's producer together with a head, so that both are trained, saved and resumed as one. lr: the head's."""

    def __init__(self, inner: Producer, head: nn.Module, lr: float) -> None:
        super().__init__(inner)
        self.head = head
        self._lr = lr

    def groups(self) -> list[Group]:
        return [*self.inner.groups(), Group(list(self.head.parameters()), self._lr)]


def with_head(producer: Producer, task: Task, config: TrainConfig) -> Producer:
    """`producer` with the task's head, if it has one."""
    if task.head is None or not list(task.head.parameters()):
        return producer
    return WithHead(producer, task.head, config.head_lr)


def start_head(task: Task, config: TrainConfig) -> None:
    """Put the head saved at `config.init_head` into the task, if one is named.

    Raises `ConfigError` for a head that doesn't fit, or for any on a sharded base.
    """
    if config.shard_base and task.head is not None:
        raise ConfigError("shard_base", f"{task.name} reads the states of a whole base; leave shard_base out")
    if config.init_head is None:
        return
    if isinstance(task, Mixture):
        raise ConfigError("init_head", "goes with a single task, not with a mixture")
    folder, wanted = split_name(config.init_head)
    states, tensors = read_states(folder)
    name = choose(states, wanted, folder)
    if (saved := states[name].get("labels")) != task.labels:
        raise ConfigError("init_head", f"was trained for the classes {saved}, but these rows have {task.labels}")
    put(task, tensors, name)
