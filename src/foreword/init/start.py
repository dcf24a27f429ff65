"""Choose and make the prefix at step 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch

from foreword.attach.virtual import tables_of
from foreword.base import Base
from foreword.base.compose import text_ids, token_prefix
from foreword.base.rendering import PLACE_ID
from foreword.data import Item
from foreword.errors import ConfigError
from foreword.init.mean import mean_start
from foreword.init.random import random_prefix
from foreword.init.selection import select_slots
from foreword.init.text import frequent_tokens, vocab_ids
from foreword.methods import Start, get_method
from foreword.prefix import EMBEDDINGS, Prefix

SAMPLE_TOKENS = 256  # random: tokens of training text whose activations are measured


@dataclass(frozen=True)
class Beginning:
    """How training starts.

    init: text, vocab, labels, mean, random or prefix. length: virtual tokens. text: for `text` the text itself, for
    `vocab` and `mean` the words; None: they are taken from the training rows. prefix: the folder of a saved prefix that
    training continues. method: the method that is trained. slots, lengths: see `TrainConfig`.
    """

    init: str = "text"
    length: int = 32
    text: str | None = None
    prefix: str | None = None
    method: str = "direct"
    seed: int = 0
    slots: tuple[str, ...] = ()
    lengths: Mapping[str, int] = field(default_factory=dict)


def starting_point(
    base: Base,
    items: Sequence[Item],
    beginning: Beginning,
    labels: Sequence[str] = (),
    roles: set[str] | None = None,
) -> Start:
    """Return the start of training, on the base's device, with the input embeddings of its tokens if it has some.

    items: the training rows. labels: the classes, for the initialisation `labels`.
    roles: those of the slots that the task uses; other slots take no prefix.
    Raises `ConfigError` if an existing prefix has another length, or for slots and lengths that don't fit.
    """
    start = _for_all_slots(base, items, beginning, labels)
    if not start.prefix.slots:
        return start
    used = {name: kv for name, kv in start.prefix.slots.items() if roles is None or name.partition(".")[0] in roles}
    if not used:
        raise ConfigError("init_prefix", f"has no slot of those that the task uses: {', '.join(sorted(roles or ()))}")
    selected = select_slots(replace(start.prefix, slots=used), beginning.slots, beginning.lengths)
    return replace(start, prefix=selected)


def _for_all_slots(base: Base, items: Sequence[Item], beginning: Beginning, labels: Sequence[str]) -> Start:
    if beginning.init == "prefix":
        saved = _saved_prefix(base, beginning)
        return Start(saved, saved.extras.get(EMBEDDINGS), base)
    if beginning.init == "random":
        sample = list(chain.from_iterable((*item.prompt_ids, *item.target_ids) for item in items[:64]))
        prefix = random_prefix(_plain(sample)[:SAMPLE_TOKENS], base, length=beginning.length, seed=beginning.seed)
        return Start(prefix, None, base)
    if beginning.init == "mean":
        return mean_start(_words(base, items, beginning), base, beginning.length, beginning.seed)
    return _of_tokens(_tokens(base, items, beginning, labels), base, beginning.init)


def _of_tokens(ids: list[int], base: Base, method: str) -> Start:
    """Return keys and values of `ids`, and the input embeddings that the same forward pass computes."""
    embeddings: list[torch.Tensor] = []
    # read in the model's forward, because a sharded base gathers its weights only there
    handles = [
        table.register_forward_hook(lambda module, args, output: embeddings.append(output[0]))
        for table in tables_of(base.model)
    ]
    try:
        prefix = token_prefix(ids, base, method)
    finally:
        for handle in handles:
            handle.remove()
    return Start(prefix, embeddings[0].detach() if embeddings else None, base)


def _tokens(base: Base, items: Sequence[Item], beginning: Beginning, labels: Sequence[str]) -> list[int]:
    if beginning.init == "labels":
        if not labels:
            raise ConfigError("init", "'labels' needs classes; this task has none")
        return text_ids(" ".join(label.replace("_", " ") for label in labels), base, beginning.length)
    if beginning.init == "vocab":
        texts = [item.target for item in items]
        return vocab_ids(beginning.text, texts, base, beginning.length, beginning.seed)
    if beginning.text is not None:
        return text_ids(beginning.text, base, beginning.length)
    return rendered_rows(items, beginning.length)


def _words(base: Base, items: Sequence[Item], beginning: Beginning) -> list[int]:
    """Return the tokens of `beginning.text`, or the most frequent tokens of the targets if it is None."""
    if beginning.text is not None:
        return text_ids(beginning.text, base)
    return frequent_tokens([item.target for item in items], base)


def _plain(ids: Sequence[int]) -> list[int]:
    """Return `ids` without places for virtual tokens."""
    return [token for token in ids if token < PLACE_ID]


def rendered_rows(items: Sequence[Item], length: int) -> list[int]:
    """Return the first `length` tokens of the training rows, one row after another; repeated if there are too few."""
    ids: list[int] = []
    for item in items:
        ids += _plain([*item.prompt_ids, *item.target_ids])
        if len(ids) >= length:
            return ids[:length]
    return (ids * (length // len(ids) + 1))[:length]


def _saved_prefix(base: Base, beginning: Beginning) -> Prefix:
    """Load the prefix that training continues. Raises `ConfigError` if method or length don't fit it."""
    folder = str(beginning.prefix)
    prefix = Prefix.load(folder, device=base.device)
    base.require_fit(prefix)
    expected = get_method(beginning.method).kind(base.model)
    if not expected.continues(prefix.kind):
        raise ConfigError(
            "init_prefix",
            f"{folder} joins attention by {prefix.merge!r}; method {beginning.method} goes on from {expected.name!r}",
        )
    if prefix.length != beginning.length and prefix.kind.has_tokens:
        raise ConfigError("length", f"is {beginning.length}, but {folder} has {prefix.length} virtual tokens")
    return prefix
