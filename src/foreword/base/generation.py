"""Batched generation with a prefix per prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from foreword.base.cache import growing_cache
from foreword.base.frozen import FrozenModel
from foreword.base.inputs import padded, ready
from foreword.base.rendering import Renderer
from foreword.errors import BatchMismatchError, ConfigError
from foreword.prefix import Prefix

_OF_CACHES = {"past_key_values", "cache_implementation", "use_cache"}


def generate_texts(
    base: FrozenModel,
    prompts: list[str],
    prefix: Prefix | Sequence[Prefix | None] | None,
    template: str | None,
    batch_size: int,
    progress: Callable[[int], None] | None,
    options: dict[str, Any],
) -> list[str]:
    """The new text of each prompt; see `Base.generate`. Longest prompts first, answers in the given order."""
    if all(slot.role == "encoder" for slot in base.slots):
        raise ConfigError("model", f"{base.name} is an encoder and generates nothing")
    if base.tokenizer is None:
        raise ConfigError("tokenizer", f"{base.name} has none; load the base with foreword.load")
    if options.get("num_return_sequences", 1) != 1:
        raise ConfigError("num_return_sequences", "must be 1 here; attach and call base.model.generate for more")
    rows = [prefix] * len(prompts) if prefix is None or isinstance(prefix, Prefix) else list(prefix)
    if len(rows) != len(prompts):
        raise BatchMismatchError(f"{len(prompts)} prompts, but {len(rows)} prefixes; give one per prompt")
    prepared = [_prepare(base, prompt, row, template) for prompt, row in zip(prompts, rows, strict=True)]
    order = sorted(range(len(prompts)), key=lambda index: -len(prepared[index][0]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        stops = sorted({stop for index in chosen for stop in prepared[index][1]})
        ids = [prepared[index][0] for index in chosen]
        answers = generate_ids(base, ids, [rows[index] for index in chosen], stops, options)
        for index, answer in zip(chosen, answers, strict=True):
            texts[index] = base.tokenizer.decode(answer, skip_special_tokens=True).strip()
        if progress is not None:
            progress(len(chosen))
    return texts


def generate_ids(
    base: FrozenModel, ids: list[list[int]], rows: Sequence[Prefix | None], stops: list[int], options: dict[str, Any]
) -> list[list[int]]:
    """New token ids of each row of `ids`, in one batch, padded on the left (encoder–decoders: on the right);
    the stop token is not included."""
    order = side_by_side(rows)
    rows, ids = ready(base, [rows[index] for index in order], [ids[index] for index in order])
    both, pad = bool(base.model.config.is_encoder_decoder), base.tokenizer.pad_token_id
    inputs = padded(base, ids, left=not both)
    settings: dict[str, Any] = {"do_sample": False, "pad_token_id": pad, "eos_token_id": stops} | options
    if not both and _cache_is_left_open(base, options):
        settings["past_key_values"] = growing_cache(base.model.config)
    same = all(row is rows[0] for row in rows)
    with torch.no_grad(), base.attach(rows[0] if same else rows):
        output = base.model.generate(**inputs, **settings)
    first = (
        1 if both else inputs["input_ids"].shape[1]
    )  # a decoder repeats the prompt; an encoder–decoder begins with its start token
    answers = [_until(row, set(stops)) for row in output[:, first:].tolist()]
    return [answer for _, answer in sorted(zip(order, answers, strict=True))]


def _cache_is_left_open(base: FrozenModel, options: dict[str, Any]) -> bool:
    """Whether nobody asks for another cache than the default, or for none."""
    config = options.get("generation_config") or base.model.generation_config
    asked = getattr(config, "cache_implementation", None) is not None or not getattr(config, "use_cache", True)
    used = getattr(base.model.config.get_text_config(), "use_cache", True) is not False
    return base.model_slots.route == "attention" and used and not asked and not _OF_CACHES & set(options)


def _prepare(
    base: FrozenModel, prompt: str, prefix: Prefix | None, template: str | None
) -> tuple[list[int], list[int]]:
    trained = None if prefix is None else prefix.record.get("template")
    renderer = Renderer(base.tokenizer, template or trained, apart=bool(base.model.config.is_encoder_decoder))
    if len(renderer.fields) > 1:
        names = ", ".join(renderer.fields)
        raise ConfigError("template", f"{renderer.template!r} needs the fields {names}; a prompt is a single text")
    text = renderer.prompt({renderer.fields[0]: prompt})
    ids = renderer.prompt_ids(text) or [base.tokenizer.bos_token_id or base.tokenizer.eos_token_id]
    return ids, renderer.stop_ids(base.model.generation_config)


def _until(row: list[int], stops: set[int]) -> list[int]:
    return next((row[:index] for index, token in enumerate(row) if token in stops), row)


def side_by_side(rows: Sequence[Prefix | None]) -> list[int]:
    """An order of `rows` in which those of one prefix are neighbours and stand as `RowMap` groups them, so that
    attention needs no index; rows without one come last."""
    counts = Counter(id(row) for row in rows)
    first: dict[int, int] = {}
    for index, row in enumerate(rows):
        first.setdefault(id(row), index)

    def place(index: int) -> tuple[bool, int, int, int]:
        row = rows[index]
        return row is None, 0 if row is None else row.length, counts[id(row)], first[id(row)]

    return sorted(range(len(rows)), key=place)
