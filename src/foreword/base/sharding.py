"""Fully sharded base: each process holds a part of every layer's frozen weights (FSDP2, `fully_shard`).

The prefix is not part of the model, so each process has all of it. The weights of a layer are gathered for
its forward and again for its backward, which passes gradients to inputs and prefix. No gradients are
reduced, since no weight has one.
"""

from __future__ import annotations

from torch import distributed as dist
from torch import nn

from foreword.base.frozen import FrozenModel
from foreword.errors import ConfigError


def shard(base: FrozenModel) -> None:
    """Shard the weights of `base` over all processes, layer by layer. The base stays sharded.

    Raises `ConfigError` if there is only one process or the base is quantised.
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
    """Return the repeated layers: the entries of the model's outermost module lists that have parameters."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inner = {id(module) for outer in lists for module in outer.modules() if module is not outer}
    outermost = [modules for modules in lists if id(modules) not in inner]
    return [layer for modules in outermost for layer in modules if next(layer.parameters(), None) is not None]


def _is_quantised(parameter: nn.Parameter) -> bool:
    wrapped = hasattr(parameter, "__tensor_flatten__") or type(parameter).__name__ in ("Params4bit", "Int8Params")
    return wrapped or not parameter.is_floating_point()
