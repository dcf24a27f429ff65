"""Choosing and making the prefix at step 0."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch

from foreword.config import TrainConfig
from foreword.data.examples import Example
from foreword.errors import ConfigError
from foreword.init.random import random_prefix
from foreword.init.text import text_ids, token_prefix, vocab_ids
from foreword.methods.base import Start
from foreword.models import Base
from foreword.prefix import Prefix

SAMPLE_TOKENS = 256  # random: tokens of training text whose activations are measured


def starting_point(config: TrainConfig, base: Base, examples: Sequence[Example]) -> Start:
    """What training starts from: `config.length` virtual tokens, with their input embeddings where they are tokens.

    text: of `init_text`, else of the first training rows, rendered as they are trained on.
    Raises `ConfigError` if an existing prefix has another length.
    """
    if config.init == "prefix":
        existing = _existing(config, base)
        return Start(existing, existing.extras.get("embeddings"), base)
    if config.init == "random":
        sample = list(chain.from_iterable((*example.prompt_ids, *example.target_ids) for example in examples[:64]))
        drawn = random_prefix(sample[:SAMPLE_TOKENS], base, length=config.length, seed=config.seed)
        return Start(drawn, None, base)
    return _of_tokens(_tokens(config, base, examples), base, config.init)


def _of_tokens(ids: list[int], base: Base, method: str) -> Start:
    """Keys and values of `ids`, and the embeddings that the same forward pass computes on the way."""
    seen: list[torch.Tensor] = []
    table = base.model.get_input_embeddings()
    # inside the model's own forward, where a sharded base has its weights together
    handle = table.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    try:
        prefix = token_prefix(ids, base, method)
    finally:
        handle.remove()
    return Start(prefix, seen[0].detach(), base)


def _tokens(config: TrainConfig, base: Base, examples: Sequence[Example]) -> list[int]:
    if config.init == "vocab":
        texts = [example.target for example in examples]
        return vocab_ids(config.init_text, texts, base, config.length, config.seed)
    if config.init_text is not None:
        return text_ids(config.init_text, base, config.length)
    return rendered_rows(examples, config.length)


def rendered_rows(examples: Sequence[Example], length: int) -> list[int]:
    """The first `length` tokens of the training rows, one after another; repeated if they are too few."""
    ids: list[int] = []
    for example in examples:
        ids += [*example.prompt_ids, *example.target_ids]
        if len(ids) >= length:
            return ids[:length]
    return (ids * (length // len(ids) + 1))[:length]


def _existing(config: TrainConfig, base: Base) -> Prefix:
    prefix = Prefix.load(str(config.init_prefix))
    base.require_fit(prefix)
    if prefix.length != config.length:
        raise ConfigError("length", f"is {config.length}, but {config.init_prefix} has {prefix.length} virtual tokens")
    return prefix
