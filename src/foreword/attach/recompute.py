"""Activation checkpointing: the recomputation in backward sees the prefix its forward saw.

Transformers' layers call `self._gradient_checkpointing_func(function, *args)`. While a prefix is
attached that function is wrapped so that `function`, run again in backward (perhaps after the
attach has ended, perhaps under another attach, perhaps on autograd's thread), finds the attachment
of its forward.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from foreword.attach.attachment import Attachment
from foreword.attach.state import State
from foreword.errors import RecomputeError

_ATTRIBUTE = "_gradient_checkpointing_func"


class CheckpointWithPrefix:
    """Stands in for a layer's checkpoint function and remembers the attachment of the forward."""

    def __init__(self, original: Callable[..., Any], state: State, attachment: Attachment) -> None:
        self.original = original
        self._state = state
        self._attachment = attachment

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.original(partial(self._run, function), *args, **kwargs)

    def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        with self._state.activate(self._attachment):
            return function(*args)


def wrap(layers: list[nn.Module], state: State, attachment: Attachment) -> None:
    """Wrap the checkpoint function of those of `layers` that are checkpointed now, for `attachment`.

    Raises `RecomputeError` for reentrant checkpointing, which would lose the prefix's gradients.
    """
    for layer in layers:
        if not getattr(layer, "gradient_checkpointing", False) or not hasattr(layer, _ATTRIBUTE):
            continue
        current = getattr(layer, _ATTRIBUTE)
        original = current.original if isinstance(current, CheckpointWithPrefix) else current
        if torch.is_grad_enabled() and getattr(original, "keywords", {}).get("use_reentrant"):
            raise RecomputeError(
                "reentrant activation checkpointing loses the prefix's gradients; enable it with "
                "gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})"
            )
        setattr(layer, _ATTRIBUTE, CheckpointWithPrefix(original, state, attachment))


def unwrap(stack: nn.Module) -> None:
    """Put the layers' own checkpoint functions back."""
    for layer in stack.modules():
        current = layer.__dict__.get(_ATTRIBUTE)
        if isinstance(current, CheckpointWithPrefix):
            setattr(layer, _ATTRIBUTE, current.original)


def candidates(stack: nn.Module) -> list[nn.Module]:
    """The layers that may be checkpointed at some time."""
    return [layer for layer in stack.modules() if hasattr(layer, "gradient_checkpointing")]
