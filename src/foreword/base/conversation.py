"""Whole conversations in a tokenizer's chat template: token ids, and which of them the assistant says.

Where the template marks the assistant's text (`{% generation %}`), ids and marks are those of Transformers'
`apply_chat_template(…, return_assistant_tokens_mask=True)`. Else the turns are found by rendering: the messages before
a turn, with the generation prompt, must be the beginning of the whole text. So what is learned is what is asked for in
generation. A turn that a template shows otherwise once it is history (without its thoughts, for instance) is not
learned there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from foreword.base.adapting import ways, with_thoughts
from foreword.base.chat import Message, Spans, render_marked
from foreword.errors import ConfigError

Turns = Literal["all", "last"]
_MARK = "\u241f"


class Unrendered(ValueError):
    """What is wrong with a conversation, in words that follow its place."""


@dataclass(frozen=True)
class Talk:
    """A rendered conversation. text: as the template makes it. spans: (start, end) characters of each learned turn.

    marked: the template itself says where its turns are. missed: turns that are learned nowhere, because the template
    shows them otherwise in history.
    """

    text: str
    spans: Spans
    marked: bool = False
    missed: int = 0


@dataclass(frozen=True)
class Tokens:
    """ids: of the whole conversation. learned: which of them the loss counts. answer: where the last turn begins."""

    ids: tuple[int, ...]
    learned: tuple[bool, ...]
    answer: int


class ChatFormat:
    """Conversations in the chat template of `tokenizer`.

    A system text that the template has no place for stands before the user's next message. Results of tools that it
    has none for are the user's messages.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, Any] = {}

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> str:
        """Return the text after which the assistant speaks. Raises `Unrendered`."""
        return self._fitted(messages, tools, asks=True)[1]

    def talk(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None, turns: Turns = "all", first: int = 0
    ) -> Talk:
        """Render a conversation that ends with the assistant's turn. Raises `Unrendered`.

        turns: which of the assistant's turns are learned. first: none before this message is.
        """
        fitted, whole, marks = self._fitted(messages, tools)
        dropped = len(messages) - len(fitted)  # system messages that were merged
        wanted = [
            index
            for index, message in enumerate(fitted)
            if message["role"] == "assistant" and index >= first - dropped
            and any(earlier["role"] != "system" for earlier in fitted[:index])
        ]  # fmt: skip
        if not wanted:
            raise Unrendered("has no assistant turn to learn")
        wanted = wanted[-1:] if turns == "last" else wanted
        if marks:
            of_all = len(wanted) == sum(message["role"] == "assistant" for message in fitted)
            return Talk(whole, marks if of_all else marks[-len(wanted) :], marked=True)
        return self._found(fitted, tools, whole, wanted)

    def ahead(self, texts: Sequence[str]) -> None:
        """Encode `texts` in one call; `tokens` then uses the result. The result of an earlier call is dropped."""
        texts = list(dict.fromkeys(texts))
        if not texts or not self._tokenizer.is_fast:
            self._known = {}
            return
        self._known = dict(zip(texts, self._tokenizer(texts, add_special_tokens=False).encodings, strict=True))

    def tokens(self, talk: Talk) -> Tokens:
        """Return the token ids of a conversation, and which of them are learned."""
        if self._tokenizer.is_fast:
            encoding = self._known.get(talk.text)
            encoding = encoding or self._tokenizer(talk.text, add_special_tokens=False).encodings[0]
            learned = _marked(encoding, talk.spans) if talk.marked else _covered(encoding, talk.spans)
            if learned is not None:
                return Tokens(tuple(encoding.ids), tuple(learned), _last_run(learned))
        return self._in_pieces(talk)

    def _in_pieces(self, talk: Talk) -> Tokens:
        """Encode each turn by itself: for tokenizers that tell no positions, or join characters across a border."""
        ids: list[int] = []
        learned: list[bool] = []
        at = answer = 0
        for start, end in talk.spans:
            asked, said = (
                self._tokenizer(part, add_special_tokens=False)["input_ids"] if part else []
                for part in (talk.text[at:start], talk.text[start:end])
            )
            answer = len(ids) + len(asked)
            ids += [*asked, *said]
            learned += [False] * len(asked) + [True] * len(said)
            at = end
        return Tokens(tuple(ids), tuple(learned), answer)

    def _fitted(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, asks: bool = False
    ) -> tuple[list[dict[str, Any]], str, Spans]:
        """Return messages that the template has a place for, with the text and the marks. Raises `Unrendered`."""
        plain = [with_thoughts(message) for message in messages]
        said = [message["content"].strip() for message in plain if message["role"] in ("system", "developer", "tool")]
        problem: Exception | None = None
        for fitted in ways(plain):
            try:
                text, marks = render_marked(self._tokenizer, fitted, asks, tools)
            except ConfigError as error:
                problem = problem or error
                continue
            if all(part in text for part in said):
                return fitted, text, marks
        reason = str(problem) if problem else "template: the chat template leaves out a system's or tool's message"
        raise Unrendered(reason.partition(": ")[2] or reason) from problem

    def _found(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, whole: str, wanted: Sequence[int]
    ) -> Talk:
        """Find the turns in a text without marks."""
        asked = [render_marked(self._tokenizer, messages[:index], True, tools)[0] for index in wanted]
        if not whole.startswith(asked[-1]):  # the generation prompt says more than the whole does
            whole = asked[-1] + str(messages[wanted[-1]]["content"]).strip() + self._end
        spans = []
        borders = [*map(len, asked[1:]), len(whole)]
        for index, before, border in zip(wanted, asked, borders, strict=True):
            if whole.startswith(before):
                end = self._ending(messages[: index + 1], tools, whole, len(before), border)
                if end is not None:
                    spans.append((len(before), end))
        last = spans[-1][1] if spans else 0
        if not spans or spans[-1][0] != len(asked[-1]):
            raise Unrendered("the chat template shows the last assistant turn otherwise than it asks for it")
        if not self._specials.search(whole, spans[-1][0], last) and not whole[last:].strip():
            whole = whole[:last] + self._end  # a template without an end token; the answer still has to end
            spans[-1] = (spans[-1][0], len(whole))
        return Talk(whole, tuple(spans), missed=len(wanted) - len(spans))

    def _ending(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, whole: str, start: int, border: int
    ) -> int | None:
        """Return where the turn that begins at `start` ends, its end token included; None if that can't be told."""
        content = messages[-1]["content"]
        if content.strip() and not messages[-1].get("tool_calls"):
            for text in filter(None, (content.strip(), content.rpartition("</think>")[2].strip())):
                if (end := self._end_of(text, whole, start, border, bool(messages[-1].get("thinking")))) is not None:
                    return end
        if not messages[-1].get("tool_calls"):
            return None
        for text in self._as_history(messages, tools):
            shared = whole[start : _shared(whole, text)]
            ends = [match.end() for match in self._specials.finditer(shared) if match[0].strip() in self._ends]
            if ends:
                return start + ends[-1]
        return None

    def _end_of(self, text: str, whole: str, start: int, border: int, thinks: bool) -> int | None:
        """Return where `text` ends within `whole`, its end token included: an "n" stands in "<think>", too."""
        occurrences = re.compile(f"(?={re.escape(text)})").finditer(whole, start, border)
        starts = [found.start() for found in occurrences if found.start() + len(text) <= border]
        if not thinks:  # what stands behind an end token is somebody else's
            starts = [at for at in starts if not any(end in whole[start:at] for end in self._ends)]
        closed = (self._specials.match(whole, at + len(text)) for at in starts)
        last = starts[0] + len(text) if starts else None
        return next((match.end() for match in closed if match), last)

    def _as_history(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> Iterator[str]:
        """Yield the text with the last message as it is shown at the end, and before another question."""
        for turns in (messages, [*messages, {"role": "user", "content": _MARK}]):
            with suppress(ConfigError):
                yield render_marked(self._tokenizer, turns, tools=tools)[0]

    @cached_property
    def _ends(self) -> frozenset[str]:
        """The special tokens that end an answer, at the end and before another question."""
        turns = [{"role": role, "content": _MARK} for role in ("user", "assistant") * 2]
        with suppress(ConfigError):
            text = render_marked(self._tokenizer, turns)[0]
            ended = [self._specials.match(text, found.end()) for found in re.finditer(_MARK, text)]
            return frozenset(match[0].strip() for match in ended[1::2] if match)
        return frozenset()

    @property
    def _end(self) -> str:
        return str(self._tokenizer.eos_token or "")

    @cached_property
    def _specials(self) -> re.Pattern[str]:
        """A special token, with white space before it."""
        added = self._tokenizer.added_tokens_decoder.values()
        names = {*self._tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        longest = sorted(filter(None, names), key=len, reverse=True)
        return re.compile(rf"\s*(?:{'|'.join(map(re.escape, longest))})") if longest else re.compile(r"(?!)")


def _shared(one: str, other: str) -> int:
    """Return how many characters two texts have in common from the beginning."""
    differs = (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differs, min(len(one), len(other)))


def _marked(encoding: Any, spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Return which tokens are learned, as Transformers' `assistant_masks`."""
    learned = [False] * len(encoding.ids)
    for start, end in spans:
        first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
        if first is None:
            break
        stop = last + 1 if last else len(learned)
        learned[first:stop] = [True] * (stop - first)
    return learned


def _covered(encoding: Any, spans: Sequence[tuple[int, int]]) -> list[bool] | None:
    """Return which tokens lie in `spans`; None if one lies across the beginning of a span."""
    learned = [False] * len(encoding.ids)
    spans = list(spans)
    at = 0
    for index, (start, end) in enumerate(encoding.offsets):
        while at < len(spans) and start >= spans[at][1]:
            at += 1
        if at == len(spans):
            break
        if start < spans[at][0] < end:
            return None
        learned[index] = start >= spans[at][0] and end > start
    return learned


def _last_run(learned: Sequence[bool]) -> int:
    """Return where the last run of learned tokens begins."""
    end = len(learned) - 1 - list(reversed(learned)).index(True) if any(learned) else 0
    while end > 0 and learned[end - 1]:
        end -= 1
    return end
