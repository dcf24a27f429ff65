"""What a prompt, virtual tokens as input embeddings, is on a base: keys and values, or an insertion in every row."""

from __future__ import annotations

import inspect
from typing import Any

from foreword.attach.virtual import tables_of
from foreword.base.frozen import FrozenModel
from foreword.models.architectures import architecture_of
from foreword.models.slots import find_slots
from foreword.prefix.kinds import EMBEDDING, SOFTMAX, Kind


def prompt_kind(model: Any) -> Kind:
    """Return the kind of prefix that a prompt is on `model`: `SOFTMAX` or `EMBEDDING`.

    It is `SOFTMAX` if the prompt equals its keys and values. That is so if in every layer each token sees all earlier
    tokens and no others.
    """
    slots = find_slots(model).slots
    full_attention = all(slot.role == "decoder" and slot.sliding_window is None for slot in slots)
    return SOFTMAX if full_attention and not architecture_of(model).recurrent else EMBEDDING


def insertion_obstacle(base: FrozenModel) -> str | None:
    """Say why no prompt can be inserted among the input embeddings of `base`; None if one can."""
    first = base.model.get_submodule(base.model_slots.stacks[0].path)
    if "input_ids" not in inspect.signature(first.forward).parameters or not tables_of(base.model):
        return f"a prompt needs token embeddings to stand among; {base.name} takes none"
    if getattr(base.model.config.get_text_config(), "hidden_size_per_layer_input", 0):
        return f"{base.name} has input embeddings per layer too; a prompt can't be inserted"
    return None
