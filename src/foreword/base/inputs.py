"""Inputs for rows with prefixes: insert virtual tokens, and turn input-conditioned prefixes into static ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foreword.base.frozen import FrozenModel, Prefixes
from foreword.base.rendering import PLACE_ID, require_tokenizer
from foreword.errors import BatchMismatchError, PrefixMismatchError, UnsupportedModelError
from foreword.placing import placed
from foreword.plain import shown
from foreword.prefix import Prefix

Ids = Sequence[int]


class Inputs(NamedTuple):
    """rows: one prefix per row, for `attach`. tensors: `input_ids` and `attention_mask`, `[B, n]`, for the model."""

    rows: list[Prefix | None]
    tensors: dict[str, Tensor]


def prefix_per_prompt(prefix: Prefixes, count: int) -> list[Prefix | None]:
    """Return one prefix for each of `count` prompts. Raises `BatchMismatchError` if `prefix` lists another number."""
    rows = [prefix] * count if prefix is None or isinstance(prefix, Prefix) else list(prefix)
    if len(rows) != count:
        raise BatchMismatchError(f"{count} prompts, but {len(rows)} prefixes; give one per prompt")
    return rows


def inputs_for(base: FrozenModel, prompts: Sequence[str] | Sequence[Ids], rows: Sequence[Prefix | None]) -> Inputs:
    """See `Base.inputs`."""
    for prompt, row in zip(prompts, rows, strict=True):
        if isinstance(prompt, str) and row is not None and "[V]" in str(row.record.get("template")):
            raise PrefixMismatchError(
                f"the prefix was trained with places for its tokens ({shown(row.record['template'])}), "
                "which a plain text has not; call base.generate or foreword.evaluate, or give token ids"
            )
    if any(isinstance(prompt, str) for prompt in prompts):
        require_tokenizer(base.tokenizer, base.name)
    ids = [base.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt) for prompt in prompts]
    static, ids = ready(base, rows, ids)
    return Inputs(static, padded(base, ids, left=all(slot.role == "decoder" for slot in base.slots)))


def padded(base: FrozenModel, ids: Sequence[Ids], left: bool) -> dict[str, Tensor]:
    """Return `input_ids` and `attention_mask` of rows padded to one width, on the left or on the right."""
    pad = 0 if base.tokenizer is None else int(base.tokenizer.pad_token_id or 0)
    width = max(len(row) for row in ids)
    gaps = [width - len(row) for row in ids]
    filled = [[*[pad] * gap, *row] if left else [*row, *[pad] * gap] for row, gap in zip(ids, gaps, strict=True)]
    mask = [
        [*[0] * gap, *[1] * len(row)] if left else [*[1] * len(row), *[0] * gap]
        for row, gap in zip(ids, gaps, strict=True)
    ]
    return {
        "input_ids": placed(filled, base.device),
        "attention_mask": placed(mask, base.device),
    }


def ready(
    base: FrozenModel, rows: Sequence[Prefix | None], prompts: Sequence[Ids]
) -> tuple[list[Prefix | None], list[list[int]]]:
    """Return (one prefix per row for `attach`, token ids per row) for prompts without padding.

    If a prefix is inserted among the embeddings, its virtual tokens go to the places in the prompt's template. Without
    such places they go before the first real token (after an encoder's [CLS]).
    A conditioned prefix becomes one static prefix per row, made from the mean input embedding of the row's prompt; this
    is differentiable in training.
    """
    ids = [_with_virtual(base, prompt, row) for prompt, row in zip(prompts, rows, strict=True)]
    static = list(rows)
    readers = {index: row for index, row in enumerate(rows) if row is not None and row.kind.reads_input}
    if readers:
        tokens = [[token for token in prompts[index] if token < PLACE_ID] for index in readers]
        for (index, prefix), mean in zip(readers.items(), mean_embeddings(base, tokens), strict=True):
            static[index] = prefix.for_input(mean)
    return static, ids


def vocabulary(base: FrozenModel) -> int:
    """Return the number of rows of the input embedding table. Virtual token i has the id `vocabulary + i`."""
    return int(getattr(base.model.get_input_embeddings(), "num_embeddings", 0))


def _with_virtual(base: FrozenModel, prompt: Ids, prefix: Prefix | None) -> list[int]:
    """Return the token ids of `prompt` with the virtual tokens of `prefix` inserted."""
    ids, first = list(prompt), vocabulary(base)
    places = sum(token >= PLACE_ID for token in ids)
    inserted = prefix.length if prefix is not None and prefix.kind.inserted else 0
    if places and places != inserted:
        raise PrefixMismatchError(
            f"the template has {places} places for virtual tokens ([V]), but {inserted} are to be inserted"
        )
    if places:
        return [token - PLACE_ID + first if token >= PLACE_ID else token for token in ids]
    if not inserted:
        return ids
    at = _after_start(base, ids)
    return [*ids[:at], *range(first, first + inserted), *ids[at:]]


def _after_start(base: FrozenModel, ids: list[int]) -> int:
    """Return the place for virtual tokens: 1, after an encoder's [CLS], whose state a pooler reads; else 0."""
    start = getattr(base.tokenizer, "cls_token_id", None)
    encoder = all(slot.role == "encoder" for slot in base.slots)
    return int(encoder and start is not None and bool(ids) and ids[0] == start)


def mean_embeddings(base: FrozenModel, prompts: Sequence[Ids]) -> Tensor:
    """Return the mean input embedding of each prompt's tokens, `[rows, width]`, without gradients."""
    table: Any = base.model.get_input_embeddings()
    if vocabulary(base) == 0:
        raise UnsupportedModelError(f"{base.name} has no input embeddings to condition a prefix on")
    with torch.no_grad():
        means = [table(placed([list(ids)], base.device))[0].float().mean(0) for ids in prompts]
    return torch.stack(means)
