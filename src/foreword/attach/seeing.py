"""What attention layers get: calls as they are computed, and keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from foreword.attach import cached
from foreword.attach.entry import parameters_of
from foreword.attach.inject import attach, attached
from foreword.attention.call import AttentionCall
from foreword.errors import AttachError
from foreword.models.slots import ModelSlots
from foreword.prefix import KV, Prefix


@contextmanager
def observed(
    model: nn.Module,
    slots: ModelSlots,
    rows: Sequence[Prefix | None],
    observer: Callable[[str, AttentionCall], None],
) -> Iterator[None]:
    """`attach`, and call `observer(slot name, call)` before each attention call is computed.

    Raises `AttachError` for models with attention code of their own.
    """
    if slots.route == "cache":
        raise AttachError(f"{type(model).__name__} has attention code of its own; its queries can't be seen from here")
    with attach(model, slots, rows):
        attached(model).observer = observer
        yield


def capture(model: nn.Module, slots: ModelSlots, **inputs: Any) -> dict[str, KV]:
    """Run `model` on `inputs` and return each slot's keys and values as attention sees them.

    key: `[B, H_kv, n, d_k]`, after rotary embedding. value: `[B, H_kv, n, d_v]`. No prefix is attached, and the cache
    is empty or off.
    Differentiable with respect to `inputs_embeds`.
    """
    if slots.route == "cache":
        with attach(model, slots, [None]):
            return cached.capture(model, slots, inputs)
    takes_cache = "use_cache" in parameters_of(model)
    captured: dict[str, KV] = {}
    with attach(model, slots, [None]):
        attached(model).captured = captured
        model(**inputs, **({"use_cache": False} if takes_cache else {}))
    return {slot.name: captured[slot.name] for slot in slots.slots if slot.name in captured}
