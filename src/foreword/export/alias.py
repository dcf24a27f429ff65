"""The alias of a prefix: real token ids that stand for its virtual tokens, for engines that find a cache by its tokens.

A request must begin with them. They are words in an order that no prompt has, drawn from the prefix's digest, and an
end token. The end token keeps what follows from being joined to the last word when the whole is one text.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

from foreword.errors import ExportError

_WORD = re.compile(r"[Ġ▁][a-z]{3,}")
_TRIES = 20


@dataclass(frozen=True)
class Alias:
    """ids: as many as the prefix has virtual tokens. text: what the tokenizer makes exactly these of, without special
    tokens around it and whatever follows; None if no such text was found."""

    ids: tuple[int, ...]
    text: str | None


def alias_of(digest: str, length: int, tokenizer: Any) -> Alias:
    """Return the alias of the prefix with this digest. The same prefix and tokenizer give the same.

    Raises `ExportError` if the tokenizer has no ordinary tokens.
    """
    words, end = _words(tokenizer), tokenizer.eos_token_id
    closed = end is not None and length > 1
    for attempt in range(_TRIES):
        drawn = random.Random(f"{digest}/{attempt}").choices(words, k=length - closed)
        ids = (*drawn, end) if closed else tuple(drawn)
        text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if closed and _stable(ids, text, tokenizer):
            return Alias(ids, text)
    return Alias(ids, None)


def _words(tokenizer: Any) -> list[int]:
    """Return the ids of tokens that are a whole word; of letters, or of whatever there is, where there are no words."""
    special = set(tokenizer.all_special_ids)
    vocabulary = sorted((index, token) for token, index in tokenizer.get_vocab().items() if index not in special)
    choices = (
        [index for index, token in vocabulary if _WORD.fullmatch(token)],
        [index for index, token in vocabulary if re.fullmatch("[a-z]", token)],
        [index for index, _ in vocabulary],
    )
    found = next((ids for ids in choices if len(ids) > 1), None)
    if found is None:
        raise ExportError("the tokenizer has no ordinary tokens, which the prefix's alias is made of")
    return found


def _stable(ids: tuple[int, ...], text: str, tokenizer: Any) -> bool:
    followed = [text + after for after in ("", "a", " a", "\n\n", "1", ".")]
    encoded = tokenizer(followed, add_special_tokens=False)["input_ids"]
    return encoded[0] == list(ids) and all(tuple(found[: len(ids)]) == ids for found in encoded)
