"""Transformers' sandbox for chat templates, with a meter on everything that a template does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import datetime
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import TemplateError, Undefined, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace

from foreword.base.chat import meter, operations, tree
from foreword.base.chat.filters import FILTERS, TESTS
from foreword.base.chat.marks import mark
from foreword.base.chat.meter import STEP, OutOfBounds, pay

TODAY: ContextVar[datetime | None] = ContextVar("foreword_today", default=None)  # what templates print; None: now


class _Generation(Extension):
    """`{% generation %}`, with which templates mark the assistant's text."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("content"), [], [], body).set_lineno(line)

    def content(self, caller: Callable[[], str]) -> str:
        made = caller()
        mark(made)
        return made


class _Formatter:
    """A text's `format` or `format_map`."""

    def __init__(self, template: str, name: str, run: Callable[..., str]) -> None:
        self._template, self._map, self._run = template, name == "format_map", run

    def __call__(self, *args: Any, **named: Any) -> str:
        values, names = ((), dict(*args)) if self._map else (args, named)
        run = (lambda *_, **given: self._run(given)) if self._map else self._run
        return operations.formatted(self._template, values, names, run)


class _Dictionary:
    """`dict(…)` and `dict.fromkeys(…)`."""

    def __call__(self, *args: Any, **named: Any) -> dict[Any, Any]:
        if len(args) > 1:
            raise TypeError("dict expected at most 1 argument")
        entries = args[0] if args else ()
        entries = entries.items() if isinstance(entries, Mapping) else entries
        return {meter.key(key): value for key, value in meter.steps(entries, 4 * STEP)} | named

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return {meter.key(key): value for key in meter.steps(keys, 4 * STEP)}


_DICTIONARY = _Dictionary()


def _require_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise OutOfBounds(f"sets {name!r} on a namespace, which may not begin with _")


class _Namespace(Namespace):
    def __init__(*args: Any, **named: Any) -> None:
        made, given = args[0], _DICTIONARY(*args[1:], **named)
        for name in given:
            _require_public(name)
        Namespace.__init__(made, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)


class Environment(ImmutableSandboxedEnvironment):
    """Transformers' sandbox with a meter on everything."""

    intercepted_binops = frozenset(operations.OPERATORS)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], optimized=False,
            finalize=meter.written,
        )  # fmt: skip
        self.filters = FILTERS | {
            tree.STEPS: meter.steps, tree.PAY: pay, tree.JOIN: meter.joined,
            tree.WALK: _walked, tree.MADE: _made, tree.KEY: meter.key,
        }  # fmt: skip
        self.tests = dict(TESTS)
        self.globals = {
            "range": safe_range,
            "raise_exception": _raise,
            "strftime_now": _now,
            "dict": _DICTIONARY,
            "namespace": _Namespace,
        }

    def _generate(self, source: nodes.Template, name: Any, filename: Any, defer_init: bool = False) -> str:
        tree.check_tree(source)
        tree.Metering(self).visit(source)
        return super()._generate(source, name, filename, defer_init)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        return operations.binary(operator, left, right)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, meter.key(argument))

    def wrap_str_format(self, value: Any) -> Any:
        run = super().wrap_str_format(value)
        return None if run is None else _Formatter(value.__self__, value.__name__, run)

    def call(__self, __context: Any, __obj: Any, *args: Any, **named: Any) -> Any:
        pay(STEP * (2 + len(args) + len(named)))
        if isinstance(__obj, BuiltinMethodType):
            named = {name: value for name, value in named.items() if name not in ("_loop_vars", "_block_vars")}
            return operations.method(__obj.__self__, __obj.__name__, args, named)
        owner = __obj.__self__ if isinstance(__obj, MethodType) else __obj
        if not isinstance(owner, _CALLABLE) and owner not in _FUNCTIONS:
            raise OutOfBounds(f"calls a {type(__obj).__name__}, which is not allowed")
        if isinstance(owner, LoopContext):
            meter.walk(args)
        return __context.call(__obj, *args, **named)


def _raise(message: Any) -> None:
    raise TemplateError(meter.text(message))


def _now(format: str) -> str:
    if len(format) > 200:
        raise OutOfBounds("formats a date at too great a length")
    return (TODAY.get() or datetime.now()).strftime(format)


_CALLABLE = (Macro, LoopContext, _Formatter, _Generation, _Dictionary, Undefined)  # the last says what is undefined
_FUNCTIONS = (safe_range, _raise, _now, _Namespace)


def _walked(value: Any) -> Any:
    meter.walk(value)
    return value


def _made(value: Any) -> Any:
    pay(8 * len(value) if isinstance(value, list | tuple) else len(value) if isinstance(value, str) else 0)
    return value
