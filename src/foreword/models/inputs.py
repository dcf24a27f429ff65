"""Inputs as a row's prefix needs them: virtual tokens inserted, input-conditioned prefixes made static."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from foreword.errors import PrefixMismatchError, UnsupportedModelError
from foreword.models.rendering import PLACE_ID
from foreword.placing import placed
from foreword.prefix import KV, Prefix

if TYPE_CHECKING:
    from foreword.models.base import Base

Ids = Sequence[int]


class Inputs(NamedTuple):
    """rows: a prefix per row, for `attach`. tensors: `input_ids` and `attention_mask`, `[B, n]`, for the model."""

    rows: list[Prefix | None]
    tensors: dict[str, Tensor]


def inputs_for(base: Base, prompts: Sequence[str] | Sequence[Ids], rows: Sequence[Prefix | None]) -> Inputs:
    """See `Base.inputs`."""
    for prompt, row in zip(prompts, rows, strict=True):
        if isinstance(prompt, str) and row is not None and "[V]" in str(row.record.get("template")):
            raise PrefixMismatchError(
                f"the prefix was trained with places for its tokens ({row.record['template']!r}), which a plain text has "
                "not; call base.generate or foreword.evaluate, or give token ids"
            )
    ids = [base.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt) for prompt in prompts]
    made, ids = ready(base, rows, ids)
    return Inputs(made, padded(base, ids, left=all(slot.role == "decoder" for slot in base.slots)))


def padded(base: Base, ids: Sequence[Ids], left: bool) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` of rows padded to one width, on one side."""
    pad = 0 if base.tokenizer is None else int(base.tokenizer.pad_token_id or 0)
    width = max(len(row) for row in ids)
    gaps = [width - len(row) for row in ids]
    filled = [[*[pad] * gap, *row] if left else [*row, *[pad] * gap] for row, gap in zip(ids, gaps, strict=True)]
    shown = [
        [*[0] * gap, *[1] * len(row)] if left else [*[1] * len(row), *[0] * gap]
        for row, gap in zip(ids, gaps, strict=True)
    ]
    return {
        "input_ids": placed(filled, base.device),
        "attention_mask": placed(shown, base.device),
    }


def ready(
    base: Base, rows: Sequence[Prefix | None], prompts: Sequence[Ids]
) -> tuple[list[Prefix | None], list[list[int]]]:
    """(a prefix per row that `attach` takes, token ids per row) for rows of prompts without padding.

    A prompt whose prefix is inserted among the embeddings gets its virtual tokens before the first real token (after
    [CLS] where an encoder has one), unless its template has put them somewhere. Conditioned prefixes become each
    row's own, from the mean input embedding of the row's prompt; in training differentiably.
    """
    ids = [_with_virtual(base, prompt, row) for prompt, row in zip(prompts, rows, strict=True)]
    conditioned = [index for index, row in enumerate(rows) if row is not None and row.merge == "conditioned"]
    made = list(rows)
    if conditioned:
        own = [[token for token in prompts[index] if token < PLACE_ID] for index in conditioned]
        pooled = mean_embeddings(base, own)
        for index, mean in zip(conditioned, pooled, strict=True):
            prefix = rows[index]
            made[index] = None if prefix is None else for_input(prefix, mean)
    return made, ids


def vocabulary(base: Base) -> int:
    """Rows of the input embedding table; virtual token i has the id `vocabulary + i`."""
    return int(getattr(base.model.get_input_embeddings(), "num_embeddings", 0))


def _with_virtual(base: Base, prompt: Ids, prefix: Prefix | None) -> list[int]:
    ids, first = list(prompt), vocabulary(base)
    placed = sum(token >= PLACE_ID for token in ids)
    if placed and (prefix is None or prefix.merge != "embedding" or prefix.length != placed):
        inserted = prefix.length if prefix is not None and prefix.merge == "embedding" else 0
        raise PrefixMismatchError(
            f"the template has {placed} places for virtual tokens ([V]), but {inserted} are to be inserted"
        )
    if placed:
        return [token - PLACE_ID + first if token >= PLACE_ID else token for token in ids]
    if prefix is None or prefix.merge != "embedding":
        return ids
    at = _after_start(base, ids)
    return [*ids[:at], *range(first, first + prefix.length), *ids[at:]]


def _after_start(base: Base, ids: list[int]) -> int:
    """1 behind an encoder's [CLS], whose state a pooler reads; else 0."""
    start = getattr(base.tokenizer, "cls_token_id", None)
    encoder = all(slot.role == "encoder" for slot in base.slots)
    return int(encoder and start is not None and bool(ids) and ids[0] == start)


def mean_embeddings(base: Base, prompts: Sequence[Ids]) -> Tensor:
    """The mean input embedding of each row's own tokens, `[rows, width]`, without gradients."""
    table: Any = base.model.get_input_embeddings()
    if vocabulary(base) == 0:
        raise UnsupportedModelError(f"{base.name} has no input embeddings to condition a prefix on")
    with torch.no_grad():
        means = [table(placed([list(ids)], base.device))[0].float().mean(0) for ids in prompts]
    return torch.stack(means)


def for_input(prefix: Prefix, pooled: Tensor) -> Prefix:
    """The static prefix that a conditioned one is for one input. pooled: `[width]`.

    key, value = base + left · diag(s) · right(slot), s = W₂ tanh(W₁ · norm(pooled) + b₁) + b₂ `[r]`; left `[m, r]`, right
    `[r, H_kv · (d_k + d_v)]`, W₁ `[h, width]`, W₂ `[r, h]`.
    """
    wide = torch.promote_types(prefix.extras["condition.left"].dtype, torch.float32)  # also where it is stored in half
    extras = {name.removeprefix("condition."): tensor.to(pooled.device, wide) for name, tensor in prefix.extras.items()}
    left = extras["left"]
    inner = torch.nn.functional.layer_norm(pooled.to(left), pooled.shape)
    scale = extras["outer"] @ torch.tanh(extras["inner"] @ inner + extras["inner_bias"]) + extras["outer_bias"]
    slots = {}
    for name, (key, value) in prefix.slots.items():
        heads, length, width = key.shape
        change = ((left * scale) @ extras[f"right.{name}"])[:length].view(length, heads, -1).transpose(0, 1)
        parts = change[..., :width].to(key), change[..., width:].to(value)
        slots[name] = KV(key + parts[0], value + parts[1])
    return replace(prefix, slots=slots, merge="softmax", extras={})
