"""Filters and tests in chat templates: Jinja's and Transformers', each paid for before it makes something large.

Others are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import reduce, wraps
from typing import Any

from jinja2 import filters, pass_environment, tests
from markupsafe import Markup, escape

from foreword.base.chat import meter
from foreword.base.chat.meter import OutOfBounds, listed, pay, steps, text, walk
from foreword.base.chat.operations import LINE_ENDS, binary, printf, replace, strip, wide


def _as_filter(name: str, prepare: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
    """Return Jinja's filter with its value and arguments passed through `prepare`."""
    original: Any = filters.FILTERS[name]
    first = 1 if hasattr(original, "jinja_pass_arg") else 0  # it gets the context or the environment too

    @wraps(original)
    def filtered(*args: Any, **named: Any) -> Any:
        pay(meter.STEP)
        made = original(*args[:first], *prepare(*args[first:], **named), **named)
        pay(len(made) if isinstance(made, str) else 0)
        return made

    return filtered


def _stepwise(value: Any, *args: Any, **_: Any) -> tuple[Any, ...]:
    return (steps(value), *args)


def _compared(value: Any, *args: Any, **_: Any) -> tuple[Any, ...]:
    values = listed(value)
    for _step in range(max(1, len(values).bit_length())):
        walk(values)
    return (values, *args)


def _as_is(value: Any, *args: Any, **_: Any) -> tuple[Any, ...]:
    return (value, *args)


def _whole(value: Any, *args: Any, **named: Any) -> tuple[Any, ...]:
    walk(value)
    if any(isinstance(precision, int) and abs(precision) > 20 for precision in (*args, *named.values())):
        raise OutOfBounds("rounds to too many digits")
    return (value, *args)


def _spelled(value: Any, *args: Any, **_: Any) -> tuple[Any, ...]:
    made = text(value)
    pay(len(made))
    return (made, *args)


def _walked(value: Any, *args: Any, **_: Any) -> tuple[Any, ...]:
    walk(value)
    return (value, *args)


def _trim(value: Any, chars: str | None = None) -> str:
    return strip("strip")(text(value), chars)


def _replaced(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    return replace(text(value), text(old), text(new), -1 if count is None else count)


@pass_environment
def _join(environment: Any, value: Any, d: Any = "", attribute: Any = None) -> str:
    return meter.joined(_attributes(environment, value, attribute), text(d))


@pass_environment
def _sum(environment: Any, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    values = _attributes(environment, value, attribute)
    return reduce(lambda left, right: binary("+", left, right), values, start)


def _indent(value: Any, width: Any = 4, first: bool = False, blank: bool = False) -> Any:
    if not isinstance(value, str):
        raise TypeError("only text can be indented")
    shift = len(width) if isinstance(width, str) else max(0, width)
    pay((2 + sum(map(value.count, LINE_ENDS))) * (shift + meter.PIECE) + 8 * len(value))
    return filters.do_indent(value, width, first, blank)


def _center(value: Any, width: int = 80) -> str:
    return wide("center")(text(value), width)


def _format(value: Any, *args: Any, **named: Any) -> str:
    return printf(text(value), named or args)


def _escape(value: Any) -> Any:
    made = value if isinstance(value, Markup) else text(value)
    pay(6 * len(made))
    return escape(made)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Return JSON as Transformers' filter of that name does."""
    shift = len(indent) if isinstance(indent, str) else indent or 0
    between = sum(map(len, separators)) if separators else 4
    before = meter.METER.get().fuel
    walk(value, 12)  # "\\uffff" for one character
    entries = (before - meter.METER.get().fuel) // meter.STEP
    pay(entries * (between + min(shift, 10**9) * meter.DEEPEST))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _attributes(environment: Any, values: Any, attribute: Any) -> Iterator[Any]:
    return steps(values) if attribute is None else map(filters.make_attrgetter(environment, attribute), steps(values))


def _title(value: Any) -> str:
    made = text(value)
    pay(meter.PIECE * len(made))
    return filters.do_title(made)


def _safe(value: Any) -> Markup:
    return Markup(meter.written(value))


FILTERS: dict[str, Callable[..., Any]] = {
    name: _as_filter(name, prepare)
    for prepare, names in (
        (_as_is, "attr d default first float int items last"),
        (_stepwise, "list map reject rejectattr select selectattr"),
        (_compared, "max min sort unique groupby"),
        (_walked, "dictsort length count reverse"),
        (_whole, "abs round"),
        (_spelled, "capitalize lower upper"),
    )
    for name in names.split()
} | {
    "center": _center,
    "e": _escape,
    "escape": _escape,
    "format": _format,
    "indent": _indent,
    "join": _join,
    "replace": _replaced,
    "safe": _safe,
    "string": lambda value: value if isinstance(value, str) else text(value),
    "sum": _sum,
    "title": _title,
    "tojson": _tojson,
    "trim": _trim,
}


def _as_test(original: Any) -> Callable[..., Any]:
    @wraps(original)
    def test(*args: Any) -> Any:
        walk(args)
        return original(*args)

    return test


_COMPARING = (
    "in", "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge", "<", "lt", "lessthan", "<=", "le",
    "lower", "upper",
)  # fmt: skip
TESTS: dict[str, Any] = {**tests.TESTS, **{name: _as_test(tests.TESTS[name]) for name in _COMPARING}}
