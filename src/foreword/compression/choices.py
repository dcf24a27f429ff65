"""The closed registry of choices: the names that `--choices` accepts, and their meaning.

drop-to-1/4     keep the quarter of the tokens with most attention
merge-to-1/4    the same, and merge the other tokens into them
svd-8           two factors of rank 8 for each slot's keys, and two for its values
int8            8 bits and a scale per channel
A+B             fewer tokens in a smaller form: drop-to-1/2+int8
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

from torch import Tensor

from foreword.base import Base
from foreword.compression import tokens
from foreword.compression.forms import PLAIN, Form, Student
from foreword.compression.int8 import int8_form
from foreword.compression.mass import require_decoder_alone
from foreword.compression.svd import svd_form
from foreword.errors import CompressionError, ConfigError
from foreword.prefix import Prefix

Shorten = Callable[[Prefix, Mapping[str, Tensor], Fraction], Prefix]

TOKENS: dict[str, Shorten] = {"drop": tokens.drop, "merge": tokens.merge}
RANKS = (4, 8, 16)
SHARES = ("1/2", "1/4")
UNCOMPRESSED = "uncompressed"
_TOKENS = re.compile(rf"({'|'.join(TOKENS)})-to-([1-9]\d{{0,5}})/([1-9]\d{{0,5}})")
_SVD = re.compile(r"svd-([1-9]\d{0,5})")


@dataclass(frozen=True)
class Choice:
    """One way to make a prefix smaller.

    form_of: returns the form in which a tensor is stored. shorten: reduces the tokens to `share`; None: keep all.
    """

    name: str
    form_of: Callable[[Tensor], Form]
    shorten: Shorten | None = None
    share: Fraction = Fraction(1)

    @property
    def needs_mass(self) -> bool:
        return self.shorten is not None

    def student(self, prefix: Prefix, mass: Mapping[str, Tensor]) -> Student:
        """Return `prefix` in its smaller form, for training. mass: see `attention_mass`; used only if `needs_mass`."""
        shorter = prefix if self.shorten is None else self.shorten(prefix, mass, self.share)
        return Student(shorter, self.form_of)


def parse(name: str) -> Choice:
    """Return the choice called `name`. Raises `ConfigError` for an unknown name."""
    first, plus, second = name.partition("+")
    match, form = _TOKENS.fullmatch(first), _form(second if plus else first)
    if match is None:
        if plus or form is None:
            raise _unknown(name)
        return Choice(name, form)
    share = Fraction(int(match[2]), int(match[3]))
    if share > 1 or (plus and form is None):
        raise _unknown(name)
    return Choice(name, form or _plain, TOKENS[match[1]], share)


def default_names(base: Base, prefix: Prefix) -> list[str]:
    """Return the default choices: ranks that save bytes, int8, and fewer tokens if the prefix can lose tokens."""
    tensors = [tensor for kv in prefix.slots.values() for tensor in kv]
    names = [f"svd-{rank}" for rank in RANKS if any(svd_form(rank, tensor) is not PLAIN for tensor in tensors)]
    names.append("int8")
    if base.model_slots.route == "cache" or prefix.length < 2:
        return names
    fewer = [f"{kind}-to-{share}" for share in SHARES for kind in TOKENS]
    return [*names, *fewer, *(f"{name}+int8" for name in fewer)]


def require_compressible(base: Base, prefix: Prefix) -> None:
    """Raise an error if `prefix` can't be compressed on `base`.

    `UnsupportedModelError` unless `base` is a decoder. `CompressionError` for a prefix trained for another task than
    language modelling, or of another kind than softmax.
    """
    require_decoder_alone(base)
    settings = prefix.record.get("config")
    task = settings.get("task", "lm") if isinstance(settings, Mapping) else "lm"
    if task != "lm":
        raise CompressionError(f"the prefix was trained for {task}; what a compressed one does is measured by lm alone")
    if not prefix.kind.is_cache:
        raise CompressionError(
            f"a prefix of merge {prefix.merge!r} can't be compressed; only one that joins attention by softmax can"
        )


def _form(name: str) -> Callable[[Tensor], Form] | None:
    """Return the form called `name`, or None."""
    if name == "int8":
        return int8_form
    match = _SVD.fullmatch(name)
    return None if match is None else partial(svd_form, int(match[1]))


def _plain(tensor: Tensor) -> Form:
    return PLAIN


def _unknown(name: str) -> ConfigError:
    return ConfigError(
        "choices",
        f"{name!r} is not known; there are svd-R, int8, drop-to-1/N, merge-to-1/N, and one of the latter two with "
        "+int8 or +svd-R behind it",
    )
