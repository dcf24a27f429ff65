"""What a row says, whatever its shape: a conversation, a pair of input and target, or a plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foreword.plain import text_problem

ROLES = {
    "system": "system", "developer": "developer",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "tool_response": "tool", "ipython": "tool",
}  # fmt: skip
_KEPT = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking", "reasoning")  # for the chat template


@dataclass(frozen=True)
class Conversation:
    """messages: role, content and what else a chat template uses. tools: their descriptions, for the template.

    first: the loss counts assistant turns from this message on.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[Any, ...] | None = None
    first: int = 0

    @property
    def turns(self) -> int:
        """The number of messages without those of the system."""
        return sum(message["role"] not in ("system", "developer") for message in self.messages)


@dataclass(frozen=True)
class Pair:
    """input, target: texts. references: all right answers. fields: the row's own, for a template that names them."""

    input: str
    target: str
    references: tuple[str, ...]
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Plain:
    """A text on its own; each of its tokens is learned."""

    text: str


Form = Conversation | Pair | Plain


class Misfit(ValueError):
    """What is wrong with a row, in words that follow the row's place."""


def message(entry: Any, number: int, role: str = "role", content: str = "content") -> dict[str, Any]:
    """Return a message with the role's standard name and its content as text. Raises `Misfit`.

    Content that is a list of parts, as multimodal data has it, is joined if all of them are texts.
    """
    where = f"message {number}"
    if not isinstance(entry, Mapping):
        raise Misfit(f"{where} must be an object with {role} and {content}, not {type(entry).__name__}")
    if role not in entry:
        raise Misfit(f"{where} has no {role!r} (it has {', '.join(map(str, entry)) or 'nothing'})")
    name = entry[role]
    if not isinstance(name, str) or name.lower() not in ROLES:
        raise Misfit(f"{where}: {role} {name!r:.40} is not known; use system, user, assistant or tool")
    made: dict[str, Any] = {"role": ROLES[name.lower()], "content": _content(entry, where, content)}
    made |= {key: entry[key] for key in _KEPT if entry.get(key) is not None}
    return made


def _content(entry: Mapping[str, Any], where: str, key: str) -> str:
    value = entry.get(key)
    if value is None:
        if entry.get("tool_calls"):
            return ""
        raise Misfit(f"{where} has no {key!r}" if key not in entry else f"{where}: {key} must be text, not null")
    if isinstance(value, list | tuple):
        return "\n".join(_part(part, where) for part in value)
    if not isinstance(value, str):
        raise Misfit(f"{where}: {key} must be text, not {type(value).__name__} ({value!r:.40})")
    return value


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type", "object") if isinstance(part, Mapping) else type(part).__name__
    raise Misfit(f"{where} holds a part of type {kind!r:.40}; only texts are read")


def conversation(
    messages: Sequence[dict[str, Any]], tools: Any = None, first: int = 0, learned: bool = True
) -> Conversation:
    """Check the order of `messages`. learned: False where no answer is needed. Raises `Misfit`.

    Messages behind the last assistant turn teach nothing and are left out, if learned.
    """
    if tools is not None and not isinstance(tools, list | tuple):
        raise Misfit(f"tools must be a list of descriptions, not {type(tools).__name__}")
    kept = list(messages)
    if learned:
        while kept and kept[-1]["role"] != "assistant":
            kept.pop()
        asked = next((index for index, entry in enumerate(kept) if entry["role"] == "user"), len(kept))
        answers = [entry for entry in kept[max(asked, first) :] if entry["role"] == "assistant"]
        if not answers:
            raise Misfit("has no assistant turn behind a user's, so nothing to learn")
        if not any(entry["content"].strip() or entry.get("tool_calls") for entry in answers):
            raise Misfit("has empty assistant turns only")
    elif not kept:
        raise Misfit("has no message")
    return Conversation(tuple(kept), tuple(tools) if tools else None, first)


def text(fields: Mapping[str, Any], name: str, empty: bool = False) -> str:
    """Return a field that must be a text. Raises `Misfit`, unless `empty` also for one of nothing but white space."""
    if name not in fields:
        raise Misfit(f"field {name!r} is missing (the row has {', '.join(sorted(map(str, fields))) or 'none'})")
    value = fields[name]
    if not isinstance(value, str):
        raise Misfit(f"field {name!r} must be text, not {type(value).__name__} ({value!r:.40})")
    if problem := text_problem(value, null=True):
        raise Misfit(f"field {name!r} {problem}")
    if not (empty or value.strip()):
        raise Misfit(f"field {name!r} is empty")
    return value


def references(fields: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the texts of the field `references`, or None. Raises `Misfit`."""
    value = fields.get("references")
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not value:
        raise Misfit(f"field 'references' must be a list of at least one text, not {value!r:.60}")
    for entry in value:
        if not isinstance(entry, str) or not entry.strip():
            raise Misfit(f"field 'references' holds {entry!r:.60}, not a text")
    return tuple(value)
