"""The closed registry of choices: what `--choices` may name, and what each name does.

drop-to-1/4     keep a quarter of the tokens, the most attended
merge-to-1/4    the same, the others merged into them
svd-8           two factors of rank 8 for each slot's keys, and for its values
int8            8 bits and a scale per channel
A+B             fewer tokens, and those stored in fewer bits: drop-to-1/2+int8
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
    """One way to make a prefix smaller. shorten, share: how tokens get fewer, if they do; form_of: how each tensor is
    stored."""

    name: str
    form_of: Callable[[Tensor], Form]
    shorten: Shorten | None = None
    share: Fraction = Fraction(1)

    @property
    def needs_mass(self) -> bool:
        return self.shorten is not None

    def student(self, prefix: Prefix, mass: Mapping[str, Tensor]) -> Student:
        """`prefix` made smaller. mass: see `attention_mass`; not looked at unless `needs_mass`."""
        shorter = prefix if self.shorten is None else self.shorten(prefix, mass, self.share)
        return Student(shorter, self.form_of)


def parse(name: str) -> Choice:
    """The choice called `name`. Raises `ConfigError` naming what there is."""
    first, plus, second = name.partition("+")
    fewer, form = _TOKENS.fullmatch(first), _form(second if plus else first)
    if fewer is None:
        if plus or form is None:
            raise _unknown(name)
        return Choice(name, form)
    share = Fraction(int(fewer[2]), int(fewer[3]))
    if share > 1 or (plus and form is None):
        raise _unknown(name)
    return Choice(name, form or _plain, TOKENS[fewer[1]], share)


def default_names(base: Base, prefix: Prefix) -> list[str]:
    """What is tried when nothing is named: ranks that save something, and fewer tokens where they can be had."""
    tensors = [tensor for kv in prefix.slots.values() for tensor in kv]
    names = [f"svd-{rank}" for rank in RANKS if any(svd_form(rank, tensor) is not PLAIN for tensor in tensors)]
    names.append("int8")
    if base.model_slots.route == "cache" or prefix.length < 2:
        return names
    fewer = [f"{kind}-to-{share}" for share in SHARES for kind in TOKENS]
    return [*names, *fewer, *(f"{name}+int8" for name in fewer)]


def require_compressible(base: Base, prefix: Prefix) -> None:
    """Raise `CompressionError` for a prefix that is more than keys and values before the tokens, or that was trained for
    another task than language modelling; `UnsupportedModelError` unless `base` is a decoder."""
    require_decoder_alone(base)
    trained = prefix.record.get("config")
    task = trained.get("task", "lm") if isinstance(trained, Mapping) else "lm"
    if task != "lm":
        raise CompressionError(f"the prefix was trained for {task}; what a compressed one does is measured by lm alone")
    if not prefix.kind.is_cache:
        raise CompressionError(
            f"a prefix of merge {prefix.merge!r} can't be compressed; only one that joins attention by softmax can"
        )


def _form(name: str) -> Callable[[Tensor], Form] | None:
    if name == "int8":
        return int8_form
    found = _SVD.fullmatch(name)
    return None if found is None else partial(svd_form, int(found[1]))


def _plain(tensor: Tensor) -> Form:
    return PLAIN


def _unknown(name: str) -> ConfigError:
    return ConfigError(
        "choices",
        f"{name!r} is not known; there are svd-R, int8, drop-to-1/N, merge-to-1/N, and one of the latter two with "
        "+int8 or +svd-R behind it",
    )
