"""The state of a conversation: who said what, the system's text, and the prefix of the next answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from foreword.base import Base
from foreword.base.asking import Question
from foreword.base.rendering import uses_chat
from foreword.errors import ConfigError
from foreword.files import append_line
from foreword.prefix import Prefix
from foreword.prefix.records import recorded_template

PLAIN = "none"  # the name of the base without a prefix


class Session:
    """A conversation with `base`.

    prefixes: by name; the first is used until another is chosen. system: the system's text, "" for none.
    options: of `Base.stream`, for every answer.
    """

    def __init__(
        self, base: Base, prefixes: Mapping[str, Prefix], system: str = "", options: Mapping[str, Any] | None = None
    ) -> None:
        self.base, self.prefixes, self.system = base, dict(prefixes), system
        self.options = dict(options or {})
        self.name = next(iter(self.prefixes), PLAIN)
        self.messages: list[dict[str, str]] = []

    @property
    def prefix(self) -> Prefix | None:
        """The prefix of the next answer; None: the plain base."""
        return self.prefixes.get(self.name)

    @property
    def remembers(self) -> bool:
        """Whether answers depend on earlier turns: a template for single inputs has no place for them."""
        return uses_chat(self.base.tokenizer, None if self.prefix is None else recorded_template(self.prefix.record))

    def answer(self, text: str) -> Iterator[str]:
        """Say `text` and yield the answer piece by piece. Leaving the iterator keeps what was said until then.

        Raises `ConfigError` if the prefix's template needs more than one text; then nothing is remembered.
        """
        said = {"role": "user", "content": text}
        question: Question = [*self._system(), *self.messages, said] if self.remembers else text
        pieces: list[str] = []
        try:
            for piece in self.base.stream(question, self.prefix, **self.options):
                pieces.append(piece)
                yield piece
        finally:
            if pieces:
                self.messages += [said, {"role": "assistant", "content": "".join(pieces).strip()}]

    def switch(self, name: str) -> None:
        """Use the prefix called `name` from now on; the conversation goes on. Raises `ConfigError`."""
        if name != PLAIN and name not in self.prefixes:
            known = ", ".join([*self.prefixes, PLAIN])
            raise ConfigError("/prefix", f"{name!r:.60} is not known; there are {known}, or give a folder")
        self.name = name

    def add(self, name: str, prefix: Prefix) -> None:
        """Use `prefix` from now on, under `name`. Raises `PrefixMismatchError` if it doesn't fit the base."""
        self.base.require_fit(prefix)
        self.prefixes[name] = prefix
        self.name = name

    def reset(self) -> None:
        """Forget what was said; the system's text and the prefix stay."""
        self.messages = []

    def save(self, path: Path) -> None:
        """Append the conversation to a JSONL file, as a row that training reads.

        Raises `ConfigError` if nothing was said, `StorageError` if the file can't be written.
        """
        if not self.messages:
            raise ConfigError("/save", "nothing was said yet")
        append_line(path, json.dumps({"messages": [*self._system(), *self.messages]}, ensure_ascii=False))

    def _system(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] if self.system else []
