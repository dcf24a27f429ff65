"""`text` and `vocab`: the keys and values of real tokens.

Li & Liang 2021, §7.4 (Figure 5): initialising with activations of real words beats random by far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from foreword.base import Base
from foreword.base.compose import text_ids
from foreword.errors import ConfigError

FREQUENT = 200  # vocab: how many of the most frequent tokens are sampled from


def vocab_ids(words: str | None, texts: Sequence[str], base: Base, length: int, seed: int) -> list[int]:
    """`length` tokens: of the given words, or sampled from the most frequent ones in `texts`."""
    if words is not None:
        return text_ids(words, base, length)
    frequent = frequent_tokens(texts, base)
    generator = torch.Generator().manual_seed(seed)
    return [frequent[int(i)] for i in torch.randint(len(frequent), (length,), generator=generator)]


def frequent_tokens(texts: Sequence[str], base: Base) -> list[int]:
    """The most frequent tokens of `texts`, without special ones. Raises `ConfigError` if there are none."""
    special = set(base.tokenizer.all_special_ids)
    counts = Counter(
        token for text in texts for token in base.tokenizer(text, add_special_tokens=False)["input_ids"]
        if token not in special
    )  # fmt: skip
    if not counts:
        raise ConfigError("init", "found no words in the targets to take")
    # ties break by id, so that a seed means the same everywhere
    return [token for token, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:FREQUENT]]
