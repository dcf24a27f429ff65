"""`text` and `vocab`: the keys and values of real tokens.

Li & Liang 2021, §7.4 (Figure 5): initialisation with activations of real words is far better than random.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from foreword.base import Base
from foreword.base.compose import text_ids
from foreword.errors import ConfigError

FREQUENT = 200  # vocab: tokens are sampled from this many of the most frequent ones


def vocab_ids(words: str | None, texts: Sequence[str], base: Base, length: int, seed: int) -> list[int]:
    """Return `length` tokens: those of `words`, or if it is None a sample of the most frequent ones in `texts`."""
    if words is not None:
        return text_ids(words, base, length)
    frequent = frequent_tokens(texts, base)
    generator = torch.Generator().manual_seed(seed)
    return [frequent[int(i)] for i in torch.randint(len(frequent), (length,), generator=generator)]


def frequent_tokens(texts: Sequence[str], base: Base) -> list[int]:
    """Return the most frequent tokens of `texts`, without special ones. Raises `ConfigError` if there are none."""
    special = set(base.tokenizer.all_special_ids)
    counts = Counter(
        token for text in texts for token in base.tokenizer(text, add_special_tokens=False)["input_ids"]
        if token not in special
    )  # fmt: skip
    if not counts:
        raise ConfigError("init", "found no words in the targets to take")
    # tokens of equal count are sorted by id, so that a seed gives the same result everywhere
    return [token for token, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:FREQUENT]]
