"""Fully sharded base: each process holds a part of every layer's frozen weights (FSDP2, `fully_shard`).

The prefix is not part of the model, so it stays replicated. A layer's weights are gathered for its
forward and again for its backward, which passes gradients on to inputs and prefix; nothing is reduced,
since no weight has a gradient.
"""

from __future__ import annotations

from torch import distributed as dist
from torch import nn

from foreword.base.frozen import FrozenModel
from foreword.errors import ConfigError


def shard(base: FrozenModel) -> None:
    """Shard the weights of `base` over all processes, layer by layer. The base stays sharded.

    Raises `ConfigError` where there is only one process.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if not dist.is_initialized() or dist.get_world_size() == 1:
        raise ConfigError("shard_base", "needs several processes; start the run with accelerate launch")
    if isinstance(base.model, FSDPModule):
        return
    if any(_is_quantised(parameter) for parameter in base.model.parameters()):
        raise ConfigError("shard_base", "a quantised base can't be sharded; load it without quantise")
    base.fingerprint  # noqa: B018 - read while every process has all weights
    for layer in _layers(base.model):
        fully_shard(layer)
    fully_shard(base.model, reshard_after_forward=True)  # embeddings and head too


def _layers(model: nn.Module) -> list[nn.Module]:
    """The repeated layers: entries of the model's module lists that hold attention or more."""
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    inner = {id(part) for outer in lists for part in outer.modules() if part is not outer}
    outermost = [part for part in lists if id(part) not in inner]
    return [layer for part in outermost for layer in part if next(layer.parameters(), None) is not None]


def _is_quantised(parameter: nn.Parameter) -> bool:
    own = hasattr(parameter, "__tensor_flatten__") or type(parameter).__name__ in ("Params4bit", "Int8Params")
    return own or not parameter.is_floating_point()
