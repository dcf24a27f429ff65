"""The interface of methods: a `Method` describes one, a `Producer` holds the parameters that it trains."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from foreword.base import Base
from foreword.errors import ConfigError
from foreword.models.slots import Slot
from foreword.prefix import Prefix
from foreword.prefix.kinds import SOFTMAX, Kind
from foreword.settings import build

MOST_WIDTH = 65_536  # the largest whole number in a method's options: a width or a rank


@dataclass(frozen=True)
class Start:
    """The start of training.

    prefix: keys and values at step 0. embeddings: the input embeddings they were computed from,
    `[m, hidden_size]`; None if there are none. base: the frozen model.
    """

    prefix: Prefix
    embeddings: Tensor | None
    base: Base

    @property
    def width(self) -> int:
        """Width of the input embeddings."""
        return self.base.embedding_width


class ParameterGroup(NamedTuple):
    """Parameters that share a learning rate. lr: its peak; None: that of the run."""

    parameters: list[nn.Parameter]
    lr: float | None = None


class Producer(nn.Module):
    """The parameters that are trained. A call returns the current `Prefix`, differentiable with respect to them."""

    @abstractmethod
    def forward(self) -> Prefix:
        """Return the prefix for this step."""

    def groups(self) -> list[ParameterGroup]:
        """Return the trained parameters, grouped by learning rate."""
        return [ParameterGroup([parameter for parameter in self.parameters() if parameter.requires_grad])]

    def finish(self) -> Prefix:
        """Return the final prefix, with plain tensors that don't depend on the method."""
        prefix = self()
        slots = {name: type(kv)(*(tensor.detach().clone() for tensor in kv)) for name, kv in prefix.slots.items()}
        extras = {name: tensor.detach().clone() for name, tensor in prefix.extras.items()}
        return Prefix(
            slots=slots,
            position_offset=prefix.position_offset,
            base=prefix.base,
            merge=prefix.merge,
            extras=extras,
        )


def by_name(module: nn.Module, *names: str) -> list[nn.Parameter]:
    """Return the parameters of `module` whose name begins with one of `names`."""
    return [parameter for name, parameter in module.named_parameters() if name.partition(".")[0] in names]


def trainable(tensor: Tensor) -> Tensor:
    """Return a contiguous copy of `tensor` for training: float32, or its own dtype if that is wider."""
    wide = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
    return wide.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Method:
    """A parameterisation of a prefix.

    start(start, options): makes a producer whose first prefix is exactly `start.prefix`. If `neutral`, the first prefix
    instead changes nothing.
    count(slots, length, width, options): the number of trained parameters; width: of the input embeddings.
    formula: `count` in words. options: frozen dataclass of the method's own settings.
    default_lr: a good peak learning rate. kind(model): the kind of prefix that it makes for a Transformers model.
    """

    name: str
    summary: str
    formula: str
    default_lr: float
    options: type[Any]
    start: Callable[[Start, Any], Producer]
    count: Callable[[Sequence[Slot], int, int, Any], int]
    kind: Callable[[Any], Kind] = lambda _: SOFTMAX
    neutral: bool = False

    def parse_options(self, values: Mapping[str, Any]) -> Any:
        """Make the method's settings from plain values. Raises `ConfigError` for an unknown or wrong one."""
        options = build(self.options, values, f"options of method {self.name}")
        for name, value in vars(options).items():
            if type(value) is int and value > MOST_WIDTH:
                raise ConfigError(name, f"must be {MOST_WIDTH:,} or less, not {value}")
        return options
