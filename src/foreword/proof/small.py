"""A tiny random model of a given model's class and kind, with weights scaled up."""

from __future__ import annotations

import re
from typing import Any

import torch

from foreword.errors import UnsupportedModelError
from foreword.proof.shrinking import shrunk

MOST_PARAMETERS = 4_000_000
_PLACE = re.compile(r"idx|index|layer_id|layer_number|training|dropout")  # what differs from layer to layer


class TooLarge(UnsupportedModelError):
    """No small model of this kind could be built."""


def small_config(model: Any) -> Any:
    """Return a small configuration of the family of `model.config`."""
    values = shrunk(model.config)
    return type(model.config).from_dict(values)


def small_model(model: Any, spread: float, seed: int = 0) -> Any:
    """Return a tiny model of the class of `model`, in float32 on CPU, its weights drawn with deviation `spread`.

    At standard initialisation outputs hardly depend on positions and context, and errors hide; scaled up they show.
    Vectors (norms, biases, sinks) are moved from their initial values, so that none of them is neutral.
    """
    config = small_config(model)
    kind: Any = type(model)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(config).parameters())
    if size > MOST_PARAMETERS:
        raise TooLarge(f"its small model would have {size:,} parameters")
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    built = kind(config).to("cpu", torch.float32)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, spread)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return built.requires_grad_(False).eval()


def uncovered(model: Any, small: Any, attentions: tuple[str, ...]) -> str | None:
    """Return what `model` has and `small` lacks: a class of its home files, or a kind of attention module.

    Attention modules are of one kind if they agree in everything but numbers and the layer they stand in.
    """
    home = type(model).__module__.rpartition(".")[0]
    ours = {type(part).__name__ for part in small.modules()}
    for part in model.modules():
        if type(part).__module__.startswith(home) and type(part).__name__ not in ours:
            return type(part).__name__
    known = {_traits(part) for part in small.modules() if type(part).__name__ in attentions}
    for path, part in model.named_modules():
        if type(part).__name__ in attentions and _traits(part) not in known:
            return f"{type(part).__name__} as at {path}"
    return None


def _traits(module: Any) -> tuple[Any, ...]:
    own = sorted((name, value) for name, value in vars(module).items() if not name.startswith("_"))
    plain = tuple((name, _trait(value)) for name, value in own if not _PLACE.search(name))
    children = tuple((name, getattr(child, "bias", None) is not None) for name, child in module.named_children())
    return type(module).__name__, plain, children


def _trait(value: Any) -> Any:
    if isinstance(value, bool | str):
        return value
    return value == 0 if isinstance(value, int | float) else value is None
