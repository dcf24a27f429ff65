"""Prefixes on one llama-server: each request gets a slot, into which its prefix is restored first.

llama.cpp finds a prefix by its alias: token ids. If the same ids were ever read as ordinary text, their untrained keys
would be found just as well, and nothing would tell. So a slot is restored before each request and used by nobody else
until the answer is there, and the answer must say that exactly the prefix was found in this slot, not more or less.
"""

from __future__ import annotations

import queue
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from foreword.errors import EngineError
from foreword.llamacpp.questions import DEFAULT_TOKENS, Prompts, Question, Unanswered
from foreword.llamacpp.server import LlamaServer, Refused

BASE = "base"


@dataclass(frozen=True)
class Served:
    """A prefix that is served. alias: ids. file: of its slot. Both are empty for the plain base."""

    prompts: Prompts
    alias: tuple[int, ...] = ()
    file: str = ""


@dataclass(frozen=True)
class Piece:
    """Some text of an answer. The last piece also has finish_reason ("stop" or "length") and the counts of tokens."""

    text: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    tokens: int = 0


class Serving:
    """Answers questions. served: by name. slots: the server's. room: tokens of a prefix, its prompt and its answer."""

    def __init__(self, server: LlamaServer, served: Mapping[str, Served], slots: int, room: int) -> None:
        self._server, self._served, self._room = server, dict(served), room
        self._free: queue.Queue[int] = queue.Queue()
        for slot in range(slots):
            self._free.put(slot)

    @property
    def names(self) -> list[str]:
        return list(self._served)

    def require_alive(self) -> None:
        """Raise `EngineError` if the server has ended."""
        self._server.require_alive()

    def answer(self, question: Question) -> Piece:
        """Return the whole answer. Raises `Unanswered`, `EngineError`."""
        served, body = self._prepared(question)
        with self._slot() as slot:
            for again in (False, True):
                self._restore(served, slot, erase=again)
                found = self._ask("/completion", body | {"id_slot": slot})
                if _used(found, served, slot):
                    return _last(found, served, str(found["content"]))
        raise _lost(question)

    def stream(self, question: Question) -> Generator[Piece, None, None]:
        """Yield the answer as it comes. Nothing is yielded before the prefix is known to be used. Raises as `answer`.

        Closing it ends the request.
        """
        served, body = self._prepared(question)
        body |= {"stream": True, "timings_per_token": True}
        with self._slot() as slot:
            for again in (False, True):
                self._restore(served, slot, erase=again)
                with closing(self._events(body | {"id_slot": slot})) as events:
                    first = next(events, None)
                    if first is not None and _used(first, served, slot):
                        yield _piece(first, served)
                        for event in events:
                            yield _piece(event, served)
                        return
        raise _lost(question)

    def _prepared(self, question: Question) -> tuple[Served, dict[str, Any]]:
        """Return who answers, and the body for llama-server."""
        if (served := self._served.get(question.model)) is None:
            raise Unanswered(
                f"model {question.model!r:.60} is not served; choose from {', '.join(self._served)}",
                404,
                "model_not_found",
            )
        ids = served.prompts.ids(question)
        left = self._room - len(served.alias) - len(ids)
        tokens = min(DEFAULT_TOKENS, max(left, 1)) if question.max_tokens is None else question.max_tokens
        if tokens > left:
            raise Unanswered(
                f"prefix, prompt and answer have {len(served.alias)} + {len(ids)} + {tokens} tokens, and there is room "
                f"for {self._room}; ask for less, or start the server with a larger --ctx-size",
                kind="context_length_exceeded",
            )
        body = {"prompt": [*served.alias, *ids], "cache_prompt": bool(served.alias), "n_predict": tokens}
        return served, {**question.options, **body}

    @contextmanager
    def _slot(self) -> Iterator[int]:
        slot = self._free.get()
        try:
            yield slot
        finally:
            self._free.put(slot)

    def _restore(self, served: Served, slot: int, erase: bool) -> None:
        if erase:
            self._ask(f"/slots/{slot}?action=erase", {})
        if served.file:
            self._ask(f"/slots/{slot}?action=restore", {"filename": served.file})

    def _ask(self, path: str, body: Any) -> Any:
        try:
            return self._server.ask(path, body)
        except Refused as refused:
            raise Unanswered(f"llama-server: {refused}", refused.status, "engine_error") from refused

    def _events(self, body: Any) -> Generator[dict[str, Any], None, None]:
        try:
            yield from self._server.stream("/completion", body)
        except Refused as refused:
            raise Unanswered(f"llama-server: {refused}", refused.status, "engine_error") from refused


def slot_that_fits(server: LlamaServer, files: Sequence[str], length: int) -> str:
    """Return the first of the slot files that the server takes; which version it has is not told otherwise.

    length: the prefix's. Raises `EngineError` if it takes none.
    """
    reason = ""
    for file in files:
        try:
            answer = server.ask("/slots/0?action=restore", {"filename": file})
        except Refused as refused:
            reason = str(refused)
            continue
        if answer.get("n_restored") == length:
            return file
    raise EngineError(
        f"llama-server refuses the prefix in every version of its format ({reason or 'it restored too little'}); the "
        "GGUF file must be of the prefix's base, with a KV cache of the type that was asked for"
    )


def _used(found: Mapping[str, Any], served: Served, slot: int) -> bool:
    """Return True if an answer was made with the prefix: just its tokens were found, in the slot that was restored."""
    if not served.alias:
        return True
    timings = found.get("timings")
    cached = timings.get("cache_n") if isinstance(timings, dict) else None
    return cached == len(served.alias) and found.get("id_slot", slot) in (slot, -1)  # -1: not told in a stream


def _piece(event: Mapping[str, Any], served: Served) -> Piece:
    if "error" in event:
        raise Unanswered(f"llama-server: {event['error']}", 500, "engine_error")
    text = str(event.get("content", ""))
    return _last(event, served, text) if event.get("stop") else Piece(text)


def _last(found: Mapping[str, Any], served: Served, text: str) -> Piece:
    reason = "length" if found.get("stop_type") == "limit" else "stop"
    read = int(found.get("tokens_evaluated", 0)) - len(served.alias)
    return Piece(text, reason, read, int(found.get("tokens_predicted", 0)))


def _lost(question: Question) -> Unanswered:
    return Unanswered(
        f"llama-server didn't use the prefix {question.model!r}, twice; no answer is given, since it would be that of "
        "untrained tokens. Does another program use the same server?",
        500,
        "prefix_not_used",
    )
