"""Operators and methods in chat templates: each is paid for before it makes something large.

A method that is not listed in `_METHODS` is refused.
"""

from __future__ import annotations

import operator
import re
import string
from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup

from foreword.base.chat.meter import METER, PIECE, OutOfBounds, key, listed, pay, walk

LONGEST_INT = 128  # bits of a number that is computed with
LONGEST_SET = 100  # characters that are stripped
LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_LONG_NUMBER = re.compile(r"\d{4,}")
_WIDTH_GIVEN = re.compile(r"%[#0\- +.\d]*\*")


def binary(sign: str, left: Any, right: Any) -> Any:
    """Compute `left sign right`."""
    if sign == "%" and isinstance(left, str):
        return printf(left, right)
    for value in (left, right):
        if isinstance(value, int) and value.bit_length() > LONGEST_INT:
            raise OutOfBounds("computes with too large a number")
    if sign == "**":
        if isinstance(right, int) and isinstance(left, int) and abs(left) > 1 and right > LONGEST_INT:
            raise OutOfBounds("computes too large a power")
    elif sign == "*":
        for sequence, count in ((left, right), (right, left)):
            if isinstance(sequence, str | list | tuple):
                pay(8 * len(sequence) * max(0, count) if isinstance(count, int) else 0)
    elif sign == "+":
        wide = 6 if isinstance(left, Markup) or isinstance(right, Markup) else 1  # it escapes the other side
        for value in (left, right):
            pay(len(value) * (wide if isinstance(value, str) else 8) if isinstance(value, str | list | tuple) else 0)
    return OPERATORS[sign](left, right)


OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "**": operator.pow,
    "%": operator.mod,
}


def printf(template: str, values: Any) -> str:
    if isinstance(template, Markup):
        raise OutOfBounds("formats a text that is marked as safe")
    if _LONG_NUMBER.search(template) or _WIDTH_GIVEN.search(template):
        raise OutOfBounds("formats with too large a width")
    for _ in range(template.count("%")):
        walk(values, 20)
        pay(2000)
    return str(template % values)


def formatted(template: str, values: tuple[Any, ...], names: Mapping[str, Any], run: Callable[..., str]) -> str:
    """Return `template.format(*values, **names)`, computed by the sandbox's `run`."""
    for _, field, spec, _ in string.Formatter().parse(template):
        if field is not None:
            if "{" in (spec or "") or _LONG_NUMBER.search(spec or ""):
                raise OutOfBounds("formats with too large a width")
            walk(values, 20)
            walk(names, 20)
            pay(2000)
    pay(len(template))
    return run(*values, **names)


def method(owner: Any, name: str, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """Call a method of a text, list, tuple or mapping. Raises `OutOfBounds` for one that is not listed."""
    allowed = _METHODS.get(type(owner), {})
    if name not in allowed:
        raise OutOfBounds(f"calls {type(owner).__name__}.{name}, which is not allowed")
    walk(args)
    walk(named)
    check = allowed[name]
    if check is not None:
        return check(owner, *args, **named)
    pay(len(owner) // 2)
    made = getattr(owner, name)(*args, **named)
    pay(len(made) if isinstance(made, str) else 0)
    return made


def _split(owner: str, sep: str | None = None, maxsplit: int = -1, *, backwards: bool = False) -> list[str]:
    pay(len(owner))
    split = owner.rsplit if backwards else owner.split
    if sep is None:
        most = METER.get().fuel // PIECE
        parts = split(None, most if maxsplit < 0 else min(most, maxsplit))
        pay(PIECE * len(parts))
        return parts
    pay(PIECE * owner.count(sep) + (len(owner) * len(sep) if backwards else 0))
    return split(sep, maxsplit)


def _rsplit(owner: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
    return _split(owner, sep, maxsplit, backwards=True)


def _splitlines(owner: str, keepends: bool = False) -> list[str]:
    pay(6 * len(owner) + PIECE * sum(map(owner.count, LINE_ENDS)))
    return owner.splitlines(keepends)


def replace(owner: str, old: str, new: str, count: int = -1) -> str:
    pay(len(owner) * 2)
    pay(owner.count(old) * len(new))
    return owner.replace(old, new, -1 if count is None else count)


def strip(name: str) -> Callable[..., str]:
    def strip(owner: str, chars: str | None = None) -> str:
        if chars is not None and len(chars) > LONGEST_SET:
            raise OutOfBounds("strips too many different characters")
        pay(len(owner) * 2)
        return str(getattr(owner, name)(chars))

    return strip


def _backwards(name: str) -> Callable[..., Any]:
    def search(owner: str, part: str, *bounds: Any) -> Any:
        pay(len(owner) * (len(part) + 1))  # searching backwards takes that long in the worst case
        return getattr(owner, name)(part, *bounds)

    return search


def wide(name: str) -> Callable[..., str]:
    def fill(owner: str, width: int, *char: str) -> str:
        pay(len(owner) + max(0, width))
        return str(getattr(owner, name)(width, *char))

    return fill


def _searched(name: str) -> Callable[..., Any]:
    def search(owner: Any, *args: Any) -> Any:
        walk(owner)
        return getattr(owner, name)(*args)

    return search


def _get(owner: Mapping[str, Any], name: Any, default: Any = None) -> Any:
    return owner.get(key(name), default)


_PLAIN = (
    "lower", "upper", "title", "capitalize", "swapcase", "casefold", "startswith", "endswith", "find", "index", "count",
    "removeprefix", "removesuffix", "partition", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit",
    "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper",
)  # fmt: skip


def _join_texts(owner: str, values: Any) -> str:
    texts = listed(values)
    pay(sum(map(len, texts)) + len(owner) * len(texts))
    return owner.join(texts)


_METHODS: dict[type, dict[str, Callable[..., Any] | None]] = {
    str: {
        **dict.fromkeys(_PLAIN, None),
        **{name: strip(name) for name in ("strip", "lstrip", "rstrip")},
        **{name: _backwards(name) for name in ("rfind", "rindex", "rpartition")},
        **{name: wide(name) for name in ("center", "ljust", "rjust", "zfill")},
        "split": _split,
        "rsplit": _rsplit,
        "splitlines": _splitlines,
        "replace": replace,
        "join": _join_texts,
    },
    list: {name: _searched(name) for name in ("index", "count")},
    tuple: {name: _searched(name) for name in ("index", "count")},
    dict: {"get": _get, "items": dict.items, "keys": dict.keys, "values": dict.values},
}
