"""Activation checkpointing on a frozen base."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from foreword.base import Base
from foreword.errors import RecomputeError

_RATES = ("dropout", "layerdrop", "attention_dropout", "activation_dropout", "residual_dropout", "embedding_dropout")


@contextmanager
def checkpointed_layers(base: Base, wanted: bool) -> Iterator[None]:
    """Activation checkpointing on, without train mode elsewhere: the base's dropout stays off.

    Raises `RecomputeError` for a base that has none or whose prefix would be lost in it.
    """
    if not wanted:
        yield
        return
    model = base.model
    if base.model_slots.route == "cache" or not model.supports_gradient_checkpointing:
        raise RecomputeError(f"{base.name} can't be trained with activation checkpointing; leave it off")
    # Transformers before 5.20 has only the older names
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    enable({"use_reentrant": False})
    layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    # functional dropout asks its layer's own flag
    attributes = [(layer, name, layer.__dict__.get(name)) for layer in layers for name in _RATES]
    rates = [(layer, name, rate) for layer, name, rate in attributes if isinstance(rate, float)]
    for layer in layers:
        layer.training = True
    for layer, name, _ in rates:
        setattr(layer, name, 0.0)
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        for layer, name, rate in rates:
            setattr(layer, name, rate)
        disable()
