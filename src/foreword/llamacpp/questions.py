"""Requests in the form of OpenAI's API: read, checked, and rendered as the prefix that they name was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foreword.base.conversation import ChatFormat, Unrendered
from foreword.base.rendering import Renderer
from foreword.errors import ConfigError
from foreword.plain import shown
from foreword.shapes import Misfit
from foreword.shapes.forms import message

DEFAULT_TOKENS = 256
_IGNORED = {"user", "metadata", "store", "stream_options", "service_tier"}
_COMMON = {"model", "max_tokens", "max_completion_tokens", "stream", "stop", "n"}
# name → (smallest, largest, whole numbers only); the names are llama-server's too
_NUMBERS: dict[str, tuple[float, float, bool]] = {
    "temperature": (0, 100, False),
    "top_p": (0, 1, False),
    "top_k": (0, 10**6, True),
    "min_p": (0, 1, False),
    "seed": (-1, 2**32 - 1, True),
    "presence_penalty": (-2, 2, False),
    "frequency_penalty": (-2, 2, False),
}


class Unanswered(Exception):
    """A request gets no answer. status: HTTP's. kind: a word for programs. The text is for people."""

    def __init__(self, problem: str, status: int = 400, kind: str = "invalid_request_error") -> None:
        super().__init__(problem)
        self.status, self.kind = status, kind


@dataclass(frozen=True)
class Question:
    """model: the name of a prefix, or base. asked: a text or fields, or if `chat` messages.

    max_tokens: None: `DEFAULT_TOKENS`, or as many as there is room for. options: llama-server's.
    """

    model: str
    asked: Any
    chat: bool
    max_tokens: int | None
    stream: bool
    options: Mapping[str, Any]


def read_question(body: Any, chat: bool) -> Question:
    """Return the question in a request's JSON. Raises `Unanswered` that names the field."""
    if not isinstance(body, dict):
        raise Unanswered(f"the request must be a JSON object, not {shown(body)}")
    asked = "messages" if chat else "prompt"
    if unknown := sorted(map(str, set(body) - _IGNORED - _COMMON - set(_NUMBERS) - {asked})):
        raise Unanswered(f"{', '.join(unknown)} is not supported here")
    if not isinstance(body.get("model"), str):
        raise Unanswered("model must be the name of a prefix, or base; GET /v1/models lists them")
    if asked not in body:
        raise Unanswered(f"{asked} is missing")
    if body.get("n", 1) != 1:
        raise Unanswered("n must be 1; ask again for another answer")
    stream = body.get("stream", False)
    if not isinstance(stream, bool | None):
        raise Unanswered("stream must be true or false")
    options: dict[str, Any] = {name: _number(body[name], name) for name in _NUMBERS if body.get(name) is not None}
    if (stop := body.get("stop")) is not None:
        options["stop"] = _stops(stop)
    return Question(body["model"], body[asked], chat, _max_tokens(body), bool(stream), {"temperature": 0} | options)


def _number(value: Any, name: str) -> float:
    least, most, whole = _NUMBERS[name]
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not least <= value <= most:
        raise Unanswered(f"{name} must be {kind} from {least} to {most}, not {shown(value)}")
    return value


def _stops(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > 16 or not all(isinstance(text, str) and text for text in texts):
        raise Unanswered(f"stop must be a text or a list of at most 16, none of them empty, not {shown(value)}")
    return texts


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        if (value := body.get(name)) is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            raise Unanswered(f"{name} must be a whole number from 1 on, not {shown(value)}")
        return value
    return None


class Prompts:
    """Renders questions with a tokenizer. template: the prefix's; None: the chat template, or the bare text.

    raw: texts are not put into the chat template: what is asked of the plain base for a completion.
    Raises `ConfigError` for a template that can't be used.
    """

    def __init__(self, tokenizer: Any, template: str | None, input_field: str = "input", raw: bool = False) -> None:
        self._tokenizer = tokenizer
        self._renderer = Renderer(tokenizer, template, input_field)
        self._completing = Renderer(tokenizer, "{input}") if raw else self._renderer
        self._chat = ChatFormat(tokenizer)

    def ids(self, question: Question) -> list[int]:
        """Return the token ids of the prompt. Raises `Unanswered`."""
        renderer = self._renderer if question.chat else self._completing
        try:
            text = self._of_messages(question.asked) if question.chat else _of_prompt(renderer, question.asked)
            found = renderer.prompt_ids(text)
        except (ConfigError, Misfit, Unrendered) as problem:
            raise Unanswered(f"{'messages' if question.chat else 'prompt'}: {problem}") from problem
        if first := found or [token for token in (self._tokenizer.bos_token_id,) if token is not None]:
            return first
        raise Unanswered("the prompt has no tokens")

    def _of_messages(self, value: Any) -> str:
        if not isinstance(value, list) or not value:
            raise Unanswered(f"messages must be a list of messages, not {shown(value)}")
        messages = [message(entry, number) for number, entry in enumerate(value, start=1)]
        if messages[-1]["role"] == "assistant":
            raise Unanswered("messages must not end with the assistant's")
        if self._renderer.chat:
            return self._chat.prompt(messages)
        if len(messages) > 1:
            raise Unanswered(
                f"there are {len(messages)} messages, but this prefix was trained with the template "
                f"{self._renderer.template!r:.200}, which has a place for one"
            )
        return _of_prompt(self._renderer, messages[0]["content"])


def _of_prompt(renderer: Renderer, value: Any) -> str:
    """Return the rendered text of one text, or of an object with the template's fields."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    fields = renderer.fields
    if isinstance(value, str) and len(fields) == 1:
        return renderer.prompt({fields[0]: value})
    if isinstance(value, Mapping) and all(isinstance(value.get(name), str) for name in fields):
        return renderer.prompt({name: value[name] for name in fields})
    expected = "a text" if len(fields) == 1 else f"an object with the texts {', '.join(fields)}"
    raise Unanswered(f"prompt must be {expected}, not {shown(value)}")
