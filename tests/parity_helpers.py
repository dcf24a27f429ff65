"""Running one batch three ways: attached, through past_key_values, and detached."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache

from foreword.models import Base
from foreword.prefix import Prefix

TOLERANCE = 1e-4
CONTROL = 100 * TOLERANCE


def run(base: Base, prefix: Any, batch: dict[str, torch.Tensor], backend: str = "auto", **more: Any) -> torch.Tensor:
    """Logits with `prefix` attached."""
    with base.attach(prefix, backend=backend):
        return base.model(**batch, use_cache=False, **more).logits


def run_cached(base: Base, prefix: Prefix, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits with the prefix's tensors as `past_key_values`, every part of it by hand."""
    rows = batch["input_ids"].shape[0]
    pairs = [tuple(part[None].expand(rows, -1, -1, -1) for part in kv) for kv in prefix.slots.values()]
    mask = batch["attention_mask"]
    wide = torch.cat([torch.ones(rows, prefix.length, dtype=mask.dtype), mask], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0) + prefix.length
    return base.model(
        batch["input_ids"], attention_mask=wide, position_ids=positions, past_key_values=DynamicCache(pairs)
    ).logits


def real(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits at real tokens, `[tokens, vocab]`."""
    return logits[batch["attention_mask"].bool()]


def gradients(logits: torch.Tensor, batch: dict[str, torch.Tensor], prefix: Prefix) -> torch.Tensor:
    """Gradient of a loss over real tokens with respect to every tensor of the prefix, flattened."""
    picked = real(logits, batch)
    loss = torch.nn.functional.cross_entropy(picked, torch.arange(len(picked)) % 250)
    parts = torch.autograd.grad(loss, [part for kv in prefix.slots.values() for part in kv])
    return torch.cat([part.flatten() for part in parts])


def without_offset(prefix: Prefix) -> Prefix:
    return Prefix(prefix.slots, 0, prefix.base)
