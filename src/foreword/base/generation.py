"""Batched generation with a prefix per prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from foreword import status
from foreword.base.asking import Question, prepare
from foreword.base.cache import growing_cache
from foreword.base.frozen import FrozenModel
from foreword.base.inputs import padded, prefix_per_prompt, ready
from foreword.base.rendering import require_tokenizer
from foreword.errors import ConfigError
from foreword.prefix import Prefix

_CACHE_OPTIONS = {"past_key_values", "cache_implementation", "use_cache"}


def generate_texts(
    base: FrozenModel,
    prompts: Sequence[Question],
    prefix: Prefix | Sequence[Prefix | None] | None,
    template: str | None,
    batch_size: int,
    progress: Callable[[int], None] | None,
    options: dict[str, Any],
) -> list[str]:
    """Return the new text of each prompt, in the order of `prompts`; see `Base.generate`.

    The longest prompts are generated first.
    """
    require_generating(base)
    if options.get("num_return_sequences", 1) != 1:
        raise ConfigError("num_return_sequences", "must be 1 here; attach and call base.model.generate for more")
    rows = prefix_per_prompt(prefix, len(prompts))
    prepared = prepare(base, prompts, rows, template)
    answers = generate_texts_of(base, prepared, rows, options, batch_size, progress or (lambda done: None))
    return [answer.strip() for answer in answers]


def require_generating(base: FrozenModel) -> None:
    """Raise `ConfigError` unless `base` generates text."""
    if all(slot.role == "encoder" for slot in base.slots):
        raise ConfigError("model", f"{base.name} is an encoder and generates nothing")
    require_tokenizer(base.tokenizer, base.name)


def generate_texts_of(
    base: FrozenModel,
    prompts: Sequence[tuple[list[int], list[int]]],
    rows: Sequence[Prefix | None],
    options: dict[str, Any],
    batch_size: int,
    progress: Callable[[int], None],
) -> list[str]:
    """Generate batch by batch, the longest prompts first; return the new text of each prompt, in order.

    prompts: (token ids, stop tokens) of each. progress: called with the number of prompts of each finished batch.
    """
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index][0]))
    texts = [""] * len(prompts)
    status.doing("generating", 0, len(prompts))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        stops = sorted({stop for index in chosen for stop in prompts[index][1]})
        ids = [prompts[index][0] for index in chosen]
        answers = generate_ids(base, ids, [rows[index] for index in chosen], stops, options)
        for index, answer in zip(chosen, answers, strict=True):
            texts[index] = base.tokenizer.decode(answer, skip_special_tokens=True)
        status.doing("generating", start + len(chosen), len(prompts))
        progress(len(chosen))
    return texts


def generate_ids(
    base: FrozenModel, ids: list[list[int]], rows: Sequence[Prefix | None], stops: list[int], options: dict[str, Any]
) -> list[list[int]]:
    """Generate one batch and return the new token ids of each row of `ids`, without the stop token.

    Rows are padded on the left, those of an encoder–decoder on the right.
    """
    order = side_by_side(rows)
    rows, ids = ready(base, [rows[index] for index in order], [ids[index] for index in order])
    encoder_decoder, pad = bool(base.model.config.is_encoder_decoder), base.tokenizer.pad_token_id
    inputs = padded(base, ids, left=not encoder_decoder)
    settings: dict[str, Any] = {"do_sample": False, "pad_token_id": pad, "eos_token_id": stops} | options
    if not encoder_decoder and _uses_default_cache(base, options):
        settings["past_key_values"] = growing_cache(base.model.config)
    same = all(row is rows[0] for row in rows)
    with torch.no_grad(), base.attach(rows[0] if same else rows):
        output = base.model.generate(**inputs, **settings)
    # the output of a decoder repeats the prompt; that of an encoder–decoder begins with the start token
    first = 1 if encoder_decoder else inputs["input_ids"].shape[1]
    answers = [_before_stop(row, set(stops)) for row in output[:, first:].tolist()]
    return [answer for _, answer in sorted(zip(order, answers, strict=True))]


def _uses_default_cache(base: FrozenModel, options: dict[str, Any]) -> bool:
    """Return True if generation would use the default cache: no option and no config names another one or none."""
    config = options.get("generation_config") or base.model.generation_config
    other_cache = getattr(config, "cache_implementation", None) is not None or not getattr(config, "use_cache", True)
    cached = getattr(base.model.config.get_text_config(), "use_cache", True) is not False
    return base.model_slots.route == "attention" and cached and not other_cache and not _CACHE_OPTIONS & set(options)


def _before_stop(row: list[int], stops: set[int]) -> list[int]:
    return next((row[:index] for index, token in enumerate(row) if token in stops), row)


def side_by_side(rows: Sequence[Prefix | None]) -> list[int]:
    """Return an order of `rows` in which rows of the same prefix are neighbours; rows without a prefix come last.

    It is the order in which `RowMap` groups rows, so attention needs no index.
    """
    counts = Counter(id(row) for row in rows)
    first: dict[int, int] = {}
    for index, row in enumerate(rows):
        first.setdefault(id(row), index)

    def place(index: int) -> tuple[bool, int, int, int]:
        row = rows[index]
        return row is None, 0 if row is None else row.length, counts[id(row)], first[id(row)]

    return sorted(range(len(rows)), key=place)
