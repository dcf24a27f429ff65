"""Messages as a chat template takes them: thoughts under each name, and what it has no place for said by the user."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from foreword.base.chat import Message

THOUGHTS = ("reasoning_content", "thinking", "reasoning")


def with_thoughts(message: Message) -> dict[str, Any]:
    """Return a message whose thoughts have each of the names by which templates read them, as in Transformers."""
    made = {key: value for key, value in message.items() if value is not None}
    thoughts = next((made[name] for name in THOUGHTS if name in made), None)
    return made if thoughts is None else {"thinking": thoughts, **made, "reasoning_content": thoughts}


def ways(messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the messages as they are, then with what fewer templates need: each adaptation, and all of them."""
    merged, seen = _merged(messages), []
    for adapted in (messages, merged, _tools_as_text(messages), _tools_as_text(merged)):
        if adapted not in seen:
            seen.append(adapted)
            yield adapted


def _merged(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with each system text before the user's next one."""
    made: list[dict[str, Any]] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] in ("system", "developer"):
            waiting.append(message["content"])
        elif message["role"] == "user" and waiting:
            made.append({**message, "content": "\n\n".join([*waiting, message["content"]])})
            waiting = []
        else:
            made.append(message)
    return made


def _tools_as_text(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": message["content"]} if message["role"] == "tool" else message
        for message in messages
    ]
