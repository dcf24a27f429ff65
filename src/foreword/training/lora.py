"""Training a PEFT LoRA beside the prefix, or the one with the other frozen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from foreword.base import Base
from foreword.config import TrainConfig
from foreword.errors import ConfigError
from foreword.models.lora import active_lora, lora_parameters


@contextmanager
def trained_lora(base: Base, config: TrainConfig) -> Iterator[dict[str, nn.Parameter] | None]:
    """The parameters of the base's LoRA, which learn while the block lasts; None if `config.train` leaves it alone.

    Raises `ConfigError` if there is no LoRA to train, or if it would have to be sharded.
    """
    if config.train == "prefix":
        yield None
        return
    if config.shard_base:
        raise ConfigError("shard_base", "a LoRA can't be trained on a sharded base; train the prefix alone")
    lora = lora_parameters(base.model)
    before = {name: parameter.detach().clone() for name, parameter in lora.items()}
    for parameter in lora.values():
        parameter.requires_grad_(True)
    try:
        yield lora
    except BaseException:  # stopped or failed: the base is again what its fingerprint says
        with torch.no_grad():
            for name, parameter in lora.items():
                parameter.copy_(before[name])
        raise
    finally:
        for parameter in lora.values():
            parameter.requires_grad_(False)


def restore_lora(base: Base, folder: Path) -> None:
    """Put the adapter saved in `folder` back on the base: the best one, not the last."""
    from peft import set_peft_model_state_dict

    weights = load_file(folder / "adapter_model.safetensors", device=str(base.device))
    set_peft_model_state_dict(base.model, weights, adapter_name=active_lora(base.model))
    base.__dict__.pop("fingerprint", None)  # it is of the adapter as it was
