"""Choosing and making the prefix at step 0."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from foreword.config import TrainConfig
from foreword.data.examples import Example
from foreword.errors import ConfigError
from foreword.init.random import random_prefix
from foreword.init.text import text_prefix, token_prefix, vocab_prefix
from foreword.models import Base
from foreword.prefix import Prefix

SAMPLE_TOKENS = 256  # random: tokens of training text whose activations are measured


def initial_prefix(config: TrainConfig, base: Base, examples: Sequence[Example]) -> Prefix:
    """The prefix that training starts from, of `config.length` virtual tokens.

    text: of `init_text`, else of the first training rows, rendered as they are trained on.
    Raises `ConfigError` if an existing prefix has another length.
    """
    if config.init == "prefix":
        return _existing(config, base)
    if config.init == "vocab":
        texts = [example.target for example in examples]
        return vocab_prefix(config.init_text, texts, base, length=config.length, seed=config.seed)
    if config.init == "random":
        sample = list(chain.from_iterable((*example.prompt_ids, *example.target_ids) for example in examples[:64]))
        return random_prefix(sample[:SAMPLE_TOKENS], base, length=config.length, seed=config.seed)
    if config.init_text is not None:
        return text_prefix(config.init_text, base, length=config.length)
    return token_prefix(rendered_rows(examples, config.length), base, "text")


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
