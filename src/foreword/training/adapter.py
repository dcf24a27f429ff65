"""Training a PEFT LoRA beside the prefix, or the one with the other frozen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from foreword.config import TrainConfig
from foreword.errors import ConfigError
from foreword.methods import Producer
from foreword.methods.base import Around, Group
from foreword.models import Base
from foreword.models.lora import active_lora, lora_parameters


class WithLora(Around):
    """A method's producer together with the base's adapter, so that both are trained, saved and resumed as one.

    train_prefix: whether the prefix learns too. lr: the adapter's peak learning rate.
    """

    def __init__(self, inner: Producer, adapter: dict[str, nn.Parameter], train_prefix: bool, lr: float) -> None:
        super().__init__(inner.requires_grad_(train_prefix))
        self.adapter = nn.ParameterList(adapter.values())
        self._lr = lr

    def groups(self) -> list[Group]:
        own = [group for group in self.inner.groups() if group.parameters]
        return [*own, Group(list(self.adapter), self._lr)]


@contextmanager
def trained_adapter(base: Base, producer: Producer, config: TrainConfig) -> Iterator[Producer]:
    """The producer to train; while the block lasts the adapter learns if `config.train` says so.

    Raises `ConfigError` if there is no adapter to train, or if it would have to be sharded.
    """
    if config.train == "prefix":
        yield producer
        return
    if config.shard_base:
        raise ConfigError("shard_base", "a LoRA can't be trained on a sharded base; train the prefix alone")
    adapter = lora_parameters(base.model)
    before = {name: parameter.detach().clone() for name, parameter in adapter.items()}
    for parameter in adapter.values():
        parameter.requires_grad_(True)
    try:
        yield WithLora(producer, adapter, config.train == "both", config.lora_lr)
    except BaseException:  # stopped or failed: the base is again what its fingerprint says
        with torch.no_grad():
            for name, parameter in adapter.items():
                parameter.copy_(before[name])
        raise
    finally:
        for parameter in adapter.values():
            parameter.requires_grad_(False)


def restore_adapter(base: Base, folder: Path) -> None:
    """Put the adapter saved in `folder` back on the base: the best one, not the last."""
    from peft import set_peft_model_state_dict

    weights = load_file(folder / "adapter_model.safetensors", device=str(base.device))
    set_peft_model_state_dict(base.model, weights, adapter_name=active_lora(base.model))
    base.__dict__.pop("fingerprint", None)  # it is of the adapter as it was
