"""The shapes of rows that language modelling reads; each is one class."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from foreword.shapes.forms import (
    Conversation,
    Form,
    Misfit,
    Pair,
    Plain,
    conversation,
    message,
    references,
    text,
)

Fields = Mapping[str, Any]
_LONGEST = 10_000_000  # characters of a JSON text in a cell


class Shape(ABC):
    """How a row is read. name: as settings call it. fields: those a row has to have, for errors."""

    name: ClassVar[str]
    fields: ClassVar[tuple[str, ...]]

    def matches(self, fields: Fields) -> bool:
        """Whether a row looks like this shape; `read` may still find something wrong with it."""
        return all(name in fields for name in self.fields)

    @abstractmethod
    def read(self, fields: Fields, learned: bool = True) -> Form:
        """Return what a row says. learned: False reads a question only, the answer may be missing. Raises `Misfit`."""

    def asks(self, fields: Fields) -> bool:
        """Whether a row without an answer looks like this shape."""
        return self.fields[0] in fields


class Messages(Shape):
    """`{"messages": [{"role": …, "content": …}, …], "tools": […]}`, as OpenAI's and TRL's."""

    name = "messages"
    fields = ("messages",)
    role, content = "role", "content"

    def matches(self, fields: Fields) -> bool:
        return isinstance(_decoded(fields.get(self.fields[0])), list | tuple)

    asks = matches

    def read(self, fields: Fields, learned: bool = True) -> Form:
        entries = _decoded(fields.get(self.fields[0]))
        if not isinstance(entries, list | tuple):
            if self.fields[0] not in fields:
                text(fields, self.fields[0])
            raise Misfit(f"field {self.fields[0]!r} must be a list of messages, not {type(entries).__name__}")
        if not entries:
            raise Misfit(f"field {self.fields[0]!r} is empty")
        return conversation(self._system(fields) + self._messages(entries), _tools(fields), learned=learned)

    def _messages(self, entries: Sequence[Any]) -> list[dict[str, Any]]:
        return [message(entry, number, self.role, self.content) for number, entry in enumerate(entries, start=1)]

    def _system(self, fields: Fields) -> list[dict[str, Any]]:
        return []


class ShareGPT(Messages):
    """`{"conversations": [{"from": "human", "value": …}, …], "system": …}`; role and content are taken too."""

    name = "conversations"
    fields = ("conversations",)

    def _messages(self, entries: Sequence[Any]) -> list[dict[str, Any]]:
        first = entries[0]
        own = not (isinstance(first, Mapping) and "role" in first and "from" not in first)
        keys = ("from", "value") if own else ("role", "content")
        return [message(entry, number, *keys) for number, entry in enumerate(entries, start=1)]

    def _system(self, fields: Fields) -> list[dict[str, Any]]:
        given = fields.get("system")
        return [{"role": "system", "content": given}] if isinstance(given, str) and given.strip() else []


class PromptCompletion(Shape):
    """`{"prompt": …, "completion": …}`: texts, or lists of messages, of which the completion is learned."""

    name = "prompt/completion"
    fields = ("prompt", "completion")

    def read(self, fields: Fields, learned: bool = True) -> Form:
        prompt, completion = (_decoded(fields.get(name)) for name in self.fields)
        if isinstance(prompt, list | tuple):
            return self._conversation(fields, prompt, completion, learned)
        if learned and isinstance(completion, list | tuple):
            raise Misfit("'completion' is a list of messages, so 'prompt' must be one too")
        asked = text(fields, "prompt")
        answer = text(fields, "completion") if learned else ""
        return Pair(asked, answer, (answer,), fields)

    def _conversation(self, fields: Fields, prompt: Sequence[Any], completion: Any, learned: bool) -> Conversation:
        asked = [message(entry, number) for number, entry in enumerate(prompt, start=1)]
        if not learned:
            return conversation(asked, _tools(fields), learned=False)
        if isinstance(completion, str):
            completion = [{"role": "assistant", "content": text(fields, "completion")}]
        if not isinstance(completion, list | tuple):
            raise Misfit(f"field 'completion' must be a list of messages, not {type(completion).__name__}")
        answers = [message(entry, len(asked) + number) for number, entry in enumerate(completion, start=1)]
        return conversation(asked + answers, _tools(fields), first=len(asked))


class Alpaca(Shape):
    """`{"instruction": …, "input": …, "output": …}`; the input may be empty, a system text is taken."""

    name = "instruction/output"
    fields = ("instruction", "output")

    def read(self, fields: Fields, learned: bool = True) -> Form:
        asked = text(fields, "instruction")
        given = "" if fields.get("input") is None else text(fields, "input", empty=True)
        asked = f"{asked}\n\n{given}" if given.strip() else asked
        answer = text(fields, "output") if learned else ""
        system = fields.get("system")
        if isinstance(system, str) and system.strip():
            pairs = [("system", system), ("user", asked)] + [("assistant", answer)] * learned
            return conversation([{"role": role, "content": said} for role, said in pairs], learned=learned)
        return Pair(asked, answer, (answer,), fields)


class Named(Shape):
    """Two fields, `input` and `target` if no others are named; `references` are further right answers."""

    name = "input/target"
    fields = ("input", "target")

    def __init__(self, input_field: str = "input", target_field: str = "target") -> None:
        self.input_field, self.target_field = input_field, target_field

    def matches(self, fields: Fields) -> bool:
        return self.input_field in fields and (self.target_field in fields or "references" in fields)

    def asks(self, fields: Fields) -> bool:
        return self.input_field in fields

    def read(self, fields: Fields, learned: bool = True) -> Form:
        """The input is "" where the field is missing: a template may name others."""
        asked = fields.get(self.input_field)
        if not learned:
            return Pair(text(fields, self.input_field), "", (), fields)
        known = references(fields)
        answer = text(fields, self.target_field) if self.target_field in fields or known is None else known[0]
        return Pair(asked if isinstance(asked, str) else "", answer, known or (answer,), fields)


class Alone(Shape):
    """`{"text": …}` and nothing else that could be learned: every token counts, no chat template is used."""

    name = "text"
    fields = ("text",)
    _ABOUT = frozenset(
        ("id", "source", "url", "meta", "date", "timestamp", "lang", "language", "dump", "file_path", "subset", "split")
    )

    def matches(self, fields: Fields) -> bool:
        others = {name: value for name, value in fields.items() if name not in ("text", *self._ABOUT)}
        learnable = {"label", "labels", "target", "tags", "references"} & set(others)
        return (
            isinstance(fields.get("text"), str)
            and not learnable
            and not any(isinstance(v, str) for v in others.values())
        )

    asks = matches

    def read(self, fields: Fields, learned: bool = True) -> Form:
        return Plain(text(fields, "text"))


SHAPES: dict[str, Shape] = {
    shape.name: shape for shape in (Messages(), ShareGPT(), PromptCompletion(), Alpaca(), Named(), Alone())
}


def _decoded(value: Any) -> Any:
    """Return a list of objects that a CSV cell holds as JSON, or `value`."""
    if not isinstance(value, str) or value.lstrip()[:1] != "[" or len(value) > _LONGEST:
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, list) and found and all(isinstance(entry, dict) for entry in found) else value


def _tools(fields: Fields) -> Any:
    tools = _decoded(fields.get("tools"))
    return None if isinstance(tools, str) and not tools.strip() else tools
