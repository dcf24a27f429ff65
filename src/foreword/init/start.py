"""Choosing and making the prefix at step 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch

from foreword.attention.virtual import tables_of
from foreword.config import TrainConfig
from foreword.errors import ConfigError
from foreword.init.mean import mean_start
from foreword.init.random import random_prefix
from foreword.init.shape import shaped
from foreword.init.text import frequent_tokens, text_ids, token_prefix, vocab_ids
from foreword.methods import Start, get_method
from foreword.models import Base
from foreword.models.rendering import PLACE_ID
from foreword.prefix import EMBEDDINGS, Prefix

SAMPLE_TOKENS = 256  # random: tokens of training text whose activations are measured


def starting_point(
    config: TrainConfig,
    base: Base,
    examples: Sequence[Any],
    labels: Sequence[str] = (),
    roles: set[str] | None = None,
) -> Start:
    """What training starts from: `config.length` virtual tokens, with their input embeddings where they are tokens.

    text: of `init_text`, else of the first training rows, rendered as they are trained on. labels: the classes, for the
    initialisation of that name. roles: of the slots that the task uses; the others take no prefix.
    Raises `ConfigError` if an existing prefix has another length, or for slots and lengths that don't fit.
    """
    start = _whole(config, base, examples, labels)
    if not start.prefix.slots:
        return start
    used = {name: kv for name, kv in start.prefix.slots.items() if roles is None or name.partition(".")[0] in roles}
    if not used:
        raise ConfigError("init_prefix", f"has no slot of those that the task uses: {', '.join(sorted(roles or ()))}")
    return replace(start, prefix=shaped(replace(start.prefix, slots=used), config.slots, config.lengths))


def _whole(config: TrainConfig, base: Base, examples: Sequence[Any], labels: Sequence[str]) -> Start:
    if config.init == "prefix":
        existing = _existing(config, base)
        return Start(existing, existing.extras.get(EMBEDDINGS), base)
    if config.init == "random":
        sample = list(chain.from_iterable((*example.prompt_ids, *example.target_ids) for example in examples[:64]))
        drawn = random_prefix(_plain(sample)[:SAMPLE_TOKENS], base, length=config.length, seed=config.seed)
        return Start(drawn, None, base)
    if config.init == "mean":
        return mean_start(_words(config, base, examples), base, config.length, config.seed)
    return _of_tokens(_tokens(config, base, examples, labels), base, config.init)


def _of_tokens(ids: list[int], base: Base, method: str) -> Start:
    """Keys and values of `ids`, and the embeddings that the same forward pass computes on the way."""
    seen: list[torch.Tensor] = []
    # inside the model's own forward, where a sharded base has its weights together
    handles = [
        table.register_forward_hook(lambda module, args, output: seen.append(output[0]))
        for table in tables_of(base.model)
    ]
    try:
        prefix = token_prefix(ids, base, method)
    finally:
        for handle in handles:
            handle.remove()
    return Start(prefix, seen[0].detach() if seen else None, base)


def _tokens(config: TrainConfig, base: Base, examples: Sequence[Any], labels: Sequence[str]) -> list[int]:
    if config.init == "labels":
        if not labels:
            raise ConfigError("init", f"'labels' needs classes; task {config.task!r} has none")
        return text_ids(" ".join(label.replace("_", " ") for label in labels), base, config.length)
    if config.init == "vocab":
        texts = [example.target for example in examples]
        return vocab_ids(config.init_text, texts, base, config.length, config.seed)
    if config.init_text is not None:
        return text_ids(config.init_text, base, config.length)
    return rendered_rows(examples, config.length)


def _words(config: TrainConfig, base: Base, examples: Sequence[Any]) -> list[int]:
    """The tokens of the given words, or the most frequent ones of the targets."""
    if config.init_text is not None:
        return text_ids(config.init_text, base)
    return frequent_tokens([example.target for example in examples], base)


def _plain(ids: Sequence[int]) -> list[int]:
    """Without places for virtual tokens."""
    return [token for token in ids if token < PLACE_ID]


def rendered_rows(examples: Sequence[Any], length: int) -> list[int]:
    """The first `length` tokens of the training rows, one after another; repeated if they are too few."""
    ids: list[int] = []
    for example in examples:
        ids += _plain([*example.prompt_ids, *example.target_ids])
        if len(ids) >= length:
            return ids[:length]
    return (ids * (length // len(ids) + 1))[:length]


def _existing(config: TrainConfig, base: Base) -> Prefix:
    prefix = Prefix.load(str(config.init_prefix))
    base.require_fit(prefix)
    wanted = get_method(config.method).merge(base.model)
    if prefix.merge != wanted and (prefix.merge, wanted) != ("softmax", "conditioned"):
        raise ConfigError(
            "init_prefix",
            f"{config.init_prefix} joins attention by {prefix.merge!r}; method {config.method} goes on from {wanted!r}",
        )
    if prefix.length != config.length and prefix.merge != "memory":
        raise ConfigError("length", f"is {config.length}, but {config.init_prefix} has {prefix.length} virtual tokens")
    return prefix
