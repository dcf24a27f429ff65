"""The attention function registered with Transformers, and how it finds its slot.

In a context with an attachment, the model's attention implementation is this function. It is registered
together with a mask function. Without one, Transformers would make no mask, and causality would be lost silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from foreword.attach.attachment import Attachment
from foreword.attach.relative import Relative
from foreword.attach.state import PerThread, State
from foreword.attention.call import normalise
from foreword.errors import AttachError

IMPLEMENTATION = "foreword"
_SITE = "_foreword_site"  # attribute of an attention module


class _Calls:
    """How often a module was called in the forward pass that a thread is in."""

    def __init__(self) -> None:
        self.number = 0


class Site:
    """Connects an attention module with its model's state and with the slots it reads, in the order of its calls.

    relative: the module with the table of the relative bias that the keys of a prefix get here; None: they get none.
    """

    def __init__(self, state: State, names: tuple[str, ...], relative: Any = None) -> None:
        self.state, self.relative = state, relative
        self._names = names
        self._calls = PerThread(_Calls)

    @property
    def counts(self) -> bool:
        """True if the module reads several slots, so that its calls are counted."""
        return len(self._names) > 1

    def next_slot(self) -> str:
        if not self.counts:
            return self._names[0]
        calls = self._calls.of
        name = self._names[calls.number % len(self._names)]
        calls.number += 1
        return name

    def start(self) -> None:
        """Begin a new forward pass: the next call reads the first slot."""
        self._calls.of.number = 0


def install(
    model: nn.Module, readers: dict[str, tuple[str, ...]], state: State, relative: Mapping[str, nn.Module]
) -> list[Site]:
    """Put a `Site` on every module in `readers` (module path → the slots it reads), and return them.

    relative: module path → `Site.relative`, for those that have one.
    """
    _register()
    sites = []
    for path, names in readers.items():
        site = model.get_submodule(path).__dict__[_SITE] = Site(state, names, relative.get(path))
        sites.append(site)
    return sites


def remove(model: nn.Module, readers: dict[str, tuple[str, ...]]) -> None:
    for path in readers:
        model.get_submodule(path).__dict__.pop(_SITE, None)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The function registered with `AttentionInterface`; its shapes are those of Transformers' own functions."""
    site = module.__dict__.get(_SITE)
    attachment = site.state.current if site else None
    if site is None or attachment is None:
        raise AttachError(
            f"{type(module).__name__} uses the attention implementation {IMPLEMENTATION!r} outside an attach"
        )
    if getattr(module, "attn_temperature_tuning", False) and not getattr(module, "use_rope", True):
        query = _rescaled(module, query, attachment, site.state.this_pass.past)
    call = normalise(
        module,
        query,
        key,
        value,
        attention_mask if attachment.packed is None else None,
        scaling,
        dropout,
        is_causal,
        softcap,
        others,
        attachment.masks,
    )
    relative = None
    if site.relative is not None and any(attachment.offsets):
        relative = Relative(site.relative, call.query.shape[2], site.state.this_pass.past)
    return attachment.run(site.next_slot(), call, relative).transpose(1, 2).contiguous(), None


def _rescaled(module: Any, query: Tensor, attachment: Attachment, past: int | Tensor) -> Tensor:
    """Return the queries of a Llama4 layer without rotary positions, scaled for their shifted positions.

    Llama4 scales these queries by s(index), where index counts the cached tokens. A prefix's offset moves the index:
    q · s(index + offset) / s(index), s(p) = log1p(⌊(p + 1) / floor⌋) · scale + 1.
    """
    if not any(attachment.offsets):
        return query
    index = torch.arange(query.shape[2], device=query.device) + past
    offsets = attachment.offset_tensor(query.shape[0], query.device)

    floor, scale = float(module.floor_scale), float(module.attn_scale)

    def temperature(position: Tensor) -> Tensor:
        return torch.log1p(torch.floor((position.float() + 1.0) / floor)) * scale + 1.0

    factor = temperature(index + offsets) / temperature(index)  # [B or 1, n]
    return query * factor[:, None, :, None].to(query.dtype)


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
