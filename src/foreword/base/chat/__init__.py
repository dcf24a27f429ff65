"""Chat templates of a tokenizer, rendered within bounds of time and memory.

A chat template is a Jinja program that comes with a model, and Jinja's sandbox bounds neither loops nor memory. Here a
template runs in Transformers' sandbox with the same tags, filters and functions, and gives the same text, but
everything it does is paid for from a fixed amount of fuel (`meter`):

- operators are intercepted, as the sandbox allows; `~` and comparisons become filters in the tree;
- each pass of a loop and each call of a macro costs as much as its body has nodes;
- filters, tests, functions and methods are those of a closed list, each paid for before it makes something large;
- text that is put out is paid for piece by piece.

An honest template uses about a thousandth of the fuel. It grows with the messages' length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from foreword.base.chat.environment import TODAY, Environment
from foreword.base.chat.marks import marking
from foreword.base.chat.meter import METER, Meter, OutOfBounds
from foreword.errors import ConfigError
from foreword.plain import text_problem

FUEL = 8_000_000  # of one rendering: a step costs 32, a character of text that is made 1
FUEL_PER_CHARACTER = 64  # of the messages
LONGEST = 100_000  # characters of a template; real ones have up to 30,000
_FAILURES = (
    OutOfBounds, TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RuntimeError,
    SyntaxError, AssertionError, MemoryError,
)  # fmt: skip
_ENVIRONMENT = Environment()
Message = Mapping[str, Any]
Spans = tuple[tuple[int, int], ...]


@contextmanager
def dated(date: str) -> Iterator[None]:
    """Within the block chat templates that print the date print this one, for instance 2026-11-28.

    A run renders its rows on the day it began, also when it goes on later.
    """
    token = TODAY.set(datetime.fromisoformat(date))
    try:
        yield
    finally:
        TODAY.reset(token)


def prints_date(tokenizer: Any) -> bool:
    """Return True if the tokenizer's chat template prints the date."""
    return "strftime" in str(getattr(tokenizer, "chat_template", None))


def render_chat(
    tokenizer: Any,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    tools: Sequence[Any] | None = None,
) -> str:
    """Return the messages in the tokenizer's chat template, as `tokenizer.apply_chat_template` does.

    Raises `ConfigError` for a template that can't be read, fails, or takes too much time or memory.
    """
    return render_marked(tokenizer, messages, add_generation_prompt, tools)[0]


def render_marked(
    tokenizer: Any,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    tools: Sequence[Any] | None = None,
) -> tuple[str, Spans]:
    """Return what `render_chat` does, and the (start, end) characters that the template marks as the assistant's.

    A template marks them with `{% generation %}`; most have no such marks. Raises `ConfigError` as `render_chat` does.
    """
    try:
        template = tokenizer.get_chat_template(tools=list(tools) if tools else None)
        if not isinstance(template, str):
            raise OutOfBounds(f"is a {type(template).__name__}, not text")
        names = {**tokenizer.special_tokens_map, "add_generation_prompt": add_generation_prompt}
        made, spans = render(template, [dict(message) for message in messages], names, tools)
    except _FAILURES as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        advice = "give a template of your own"
        raise ConfigError("template", f"the tokenizer's chat template can't be used: {reason}; {advice}") from error
    if problem := text_problem(made, null=True):
        raise ConfigError("template", f"the tokenizer's chat template makes a text that {problem}")
    return made, spans


def render(
    template: str, messages: list[dict[str, Any]], names: Mapping[str, Any], tools: Sequence[Any] | None = None
) -> tuple[str, Spans]:
    """Return the text of a template and its marked spans. Raises what Jinja, the template and the meter raise."""
    tools = list(tools) if tools else None
    token = METER.set(Meter(FUEL + FUEL_PER_CHARACTER * (_size(messages) + _size(tools))))
    try:
        with marking() as marked:
            for piece in _compiled(template).generate(messages=messages, tools=tools, documents=None, **names):
                marked.add(piece)
        return "".join(marked.pieces), tuple(marked.spans)
    finally:
        METER.reset(token)


def _size(value: Any) -> int:
    """Return the characters of the texts within `value`."""
    left, size = [value], 0
    while left:
        entry = left.pop()
        if isinstance(entry, str):
            size += len(entry)
        elif isinstance(entry, Mapping):
            left += [*entry.keys(), *entry.values()]
        elif isinstance(entry, list | tuple):
            left += entry
    return size


@lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    if len(template) > LONGEST:
        raise OutOfBounds(f"has {len(template):,} characters; at most {LONGEST:,} are read")
    return _ENVIRONMENT.from_string(template)
