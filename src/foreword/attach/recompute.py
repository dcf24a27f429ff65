"""Activation checkpointing: the recomputation in backward sees the prefix that its forward saw.

Transformers' layers call `self._gradient_checkpointing_func(function, *args)`, and `function` runs again
in backward. By then the attach may have ended, another one may be open, or autograd's thread may run it.
While a prefix is attached, the checkpoint function is therefore wrapped: `function` always runs with the
attachment of its forward, and without one in a context that has none.
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
    """Replaces a layer's checkpoint function. The recomputation gets the attachment of its forward."""

    def __init__(self, original: Callable[..., Any], state: State) -> None:
        self.original = original
        self._state = state

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        attachment = self._state.current
        if attachment is not None:
            function = partial(self._run, function, attachment)
        return self.original(function, *args, **kwargs)

    def _run(self, function: Callable[..., Any], attachment: Attachment, *args: Any) -> Any:
        with self._state.activate(attachment):
            return function(*args)


def wrap(layers: list[nn.Module], state: State) -> None:
    """Wrap the checkpoint function of those `layers` that are checkpointed now.

    Raises `RecomputeError` for reentrant checkpointing, which would lose the prefix's gradients.
    """
    for layer in layers:
        if not getattr(layer, "gradient_checkpointing", False) or not hasattr(layer, _ATTRIBUTE):
            continue
        present = getattr(layer, _ATTRIBUTE)
        original = present.original if isinstance(present, CheckpointWithPrefix) else present
        if torch.is_grad_enabled() and getattr(original, "keywords", {}).get("use_reentrant"):
            raise RecomputeError(
                "reentrant activation checkpointing loses the prefix's gradients; enable it with "
                "gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})"
            )
        if present is original:
            setattr(layer, _ATTRIBUTE, CheckpointWithPrefix(original, state))


def unwrap(stack: nn.Module) -> None:
    """Restore the layers' own checkpoint functions."""
    for layer in stack.modules():
        current = layer.__dict__.get(_ATTRIBUTE)
        if isinstance(current, CheckpointWithPrefix):
            setattr(layer, _ATTRIBUTE, current.original)


def candidates(stack: nn.Module) -> list[nn.Module]:
    """Return the layers that can be checkpointed."""
    return [layer for layer in stack.modules() if hasattr(layer, "gradient_checkpointing")]
