"""Rows of language modelling: their shape is recognised, and each becomes token ids with what is learned of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from foreword import status
from foreword.base.conversation import ChatFormat, Talk, Tokens, Unrendered
from foreword.base.rendering import Renderer, named_fields, template_digest
from foreword.errors import DataError
from foreword.shapes import SHAPES, Conversation, Form, Misfit, Named, Pair, Plain, Shape, recognise, summary
from foreword.shapes.forms import text

_LOOKED_AT = 1024  # rows
_ANSWERS = ("target", "completion", "output", "response", "answer", "summary")


@dataclass(frozen=True)
class Example:
    """A row of language modelling: prompt and target token ids (with the end token), their texts, file and line.

    learned: which of `target_ids` the loss counts; None: all. Between the turns of a conversation stand others' words.
    answer: where the last answer begins in `target_ids`.
    """

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    prompt: str
    target: str
    references: tuple[str, ...]
    where: str
    learned: tuple[bool, ...] | None = None
    answer: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.target_ids)

    @property
    def num_learned(self) -> int:
        """The number of target tokens that the loss counts."""
        return len(self.target_ids) if self.learned is None else sum(self.learned)

    @property
    def asked_ids(self) -> tuple[int, ...]:
        """The token ids after which the last answer begins."""
        return self.prompt_ids + self.target_ids[: self.answer]

    @property
    def content(self) -> tuple[Any, ...]:
        ids = self.prompt_ids, self.target_ids
        return ids if self.learned is None else (*ids, self.learned)


@dataclass(frozen=True)
class RowSettings:
    """shape: one of `SHAPES`, or "auto". turns: which of the assistant's are learned. Others: see `TaskSettings`."""

    shape: str = "auto"
    turns: Literal["all", "last"] = "all"
    input_field: str | None = None
    target_field: str | None = None


class Templated(Named):
    """Rows whose prompt is made from the fields that a template names."""

    def __init__(self, names: Sequence[str], target_field: str) -> None:
        super().__init__(names[0], target_field)
        self.names = tuple(names)

    def matches(self, fields: Mapping[str, Any]) -> bool:
        return all(name in fields for name in self.names)


class LmRows:
    """Makes examples from rows. `start` begins a source; its first rows tell the shape, unless settings name it."""

    def __init__(self, renderer: Renderer, settings: RowSettings | None = None) -> None:
        self.renderer, self.settings = renderer, settings or RowSettings()
        self.chat = ChatFormat(renderer.tokenizer)
        self._named = named_fields(renderer.template, self.settings.input_field or "input")
        self._source = "the rows"
        self._shape: Shape | None = None
        self._first: Shape | None = None  # the shape of the first source, which is that of training
        self._missed = 0
        self._ready: dict[int, tuple[Any, Any]] = {}

    @property
    def plain(self) -> bool:
        """Whether rows are texts on their own, which no chat template surrounds."""
        return isinstance(self._first, type(SHAPES["text"]))

    def rendering(self) -> dict[str, Any]:
        """Return how rows were rendered, for a prefix's record: their shape, and which turns were learned.

        chat_template: its digest, if it was used. So whoever uses the prefix can tell whether prompts look the same.
        """
        told: dict[str, Any] = {"shape": self._first.name if self._first is not None else None}
        if self.renderer.chat and not self.plain:
            told |= {"turns": self.settings.turns, "chat_template": template_digest(self.renderer.tokenizer)}
        return told

    def start(self, source: str) -> None:
        """Read `source` next, whose shape may be another."""
        self._source, self._shape, self._missed, self._ready = source, None, 0, {}

    def finish(self) -> None:
        """Say what was left out of the source that was read."""
        if self._missed:
            status.note(
                f"{self._source}: {self._missed:,} earlier assistant turns are not learned, because the chat template "
                "shows them otherwise once they are history"
            )

    def ahead(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Recognise the shape of `rows` if they are the first, and encode them in one call.

        Raises `DataError` if they have none that is known.
        """
        if self._shape is None and rows:
            self._shape = self._recognised(rows[:_LOOKED_AT])
            self._first = self._first or self._shape
            line = summary(self._shape, rows[:_LOOKED_AT], self.settings.turns, self.renderer.chat)
            status.note(f"{self._source}: {line}")
        self._ready = {id(fields): (fields, self._read(fields)) for fields in rows}
        known = [read for _, read in self._ready.values() if not isinstance(read, str)]
        pairs = [form for form, talk in known if talk is None and isinstance(form, Pair)]
        self.renderer.ahead([(self._prompt(form), form.target) for form in pairs])
        self.chat.ahead([talk.text for _, talk in known if talk is not None])

    def item(self, fields: Mapping[str, Any], where: str) -> Example | str:
        """Return the example of a row, or a text that says what is wrong with the row."""
        known = self._ready.get(id(fields))
        read = known[1] if known is not None and known[0] is fields else self._read(fields)
        if isinstance(read, str):
            return read
        form, talk = read
        if talk is not None:
            return self._conversation(talk, form, where)
        return self._pair(form, where) if isinstance(form, Pair) else self._plain(form, where)

    def _read(self, fields: Mapping[str, Any]) -> tuple[Any, Talk | None] | str:
        """Return the form of a row, with its text if it is a conversation; or what is wrong with the row."""
        try:
            self._shape = self._shape or self._recognised([fields])
            self._first = self._first or self._shape
            form = self._shape.read(fields)
            self._require_fields(form)
            if isinstance(form, Conversation):
                return form, self.chat.talk(form.messages, form.tools, self.settings.turns, form.first)
            if isinstance(form, Pair) and self.renderer.chat and not self.renderer.apart:
                asked = {"role": "user", "content": self._values(form)[self.renderer.fields[0]]}
                return form, self.chat.talk([asked, {"role": "assistant", "content": form.target}])
            return form, None
        except (Misfit, Unrendered, DataError) as problem:
            return str(problem)

    def _recognised(self, rows: Sequence[Mapping[str, Any]]) -> Shape:
        settings = self.settings
        if settings.shape != "auto":
            return SHAPES[settings.shape]
        if names := self._named:
            target = next((name for name in _ANSWERS if name not in names and name in rows[0]), "target")
            return Templated(names, settings.target_field or target)
        if settings.input_field or settings.target_field:
            return Named(settings.input_field or "input", settings.target_field or "target")
        return recognise(rows, self._source)

    def _require_fields(self, form: Form) -> None:
        """Raise `Misfit` unless what the prompt is made of are texts, of which one isn't empty."""
        if isinstance(form, Conversation):
            if not self.renderer.chat:
                raise Misfit("has messages, which need the base's chat template" + _without_chat(self.renderer))
            if self.renderer.apart:
                raise Misfit("has messages, which an encoder–decoder doesn't read; give rows of input and target")
            return
        if not isinstance(form, Pair):
            return
        values = self._values(form)
        for name in self.renderer.fields:
            text(values, name, empty=True)
        if not any(values[name].strip() for name in self.renderer.fields):
            names = ", ".join(map(repr, self.renderer.fields))
            raise Misfit(f"field {names} is empty" if len(self.renderer.fields) == 1 else f"fields {names} are empty")

    def _values(self, pair: Pair) -> Mapping[str, Any]:
        """Return the fields from which the prompt is made."""
        if isinstance(self._shape, Named) or self._named:
            return pair.fields
        return {self.renderer.fields[0]: pair.input}

    def _prompt(self, pair: Pair) -> str:
        return self.renderer.prompt(self._values(pair))

    def _pair(self, form: Pair, where: str) -> Example | str:
        prompt = self._prompt(form)
        ids = tuple(self.renderer.prompt_ids(prompt)), tuple(self.renderer.target_ids(prompt, form.target))
        example = Example(*ids, prompt, form.target, form.references, where)
        return example if example.prompt_ids else "the prompt has no tokens"

    def _plain(self, form: Plain, where: str) -> Example | str:
        if self.renderer.apart:
            return "is a text alone, and an encoder–decoder needs a question too; name --input-field and --target-field"
        ids = self.renderer.text_ids(form.text)
        if len(ids) < 2:
            return "the text has too few tokens to learn from"
        return Example(ids[:1], ids[1:], "", form.text, (form.text,), where)

    def _conversation(self, talk: Talk, form: Conversation | Pair, where: str) -> Example | str:
        self._missed += talk.missed
        if isinstance(form, Pair):
            return _cut(self.chat.tokens(talk), talk, form.target, form.references, where)
        said = form.messages[-1]["content"].strip()
        return _cut(self.chat.tokens(talk), talk, said, (said,), where)


def _cut(tokens: Tokens, talk: Talk, said: str, references: tuple[str, ...], where: str) -> Example | str:
    """Make an example that ends with the last token that is learned; what follows teaches nothing."""
    learned = tokens.learned
    if True not in learned[1:]:
        return "no token of the assistant's turns is left to learn"
    begin = learned.index(True, 1)
    end = len(learned) - list(reversed(learned)).index(True)
    counted = learned[begin:end]
    prompt = talk.text[: talk.spans[-1][0]]
    return Example(
        tokens.ids[:begin], tokens.ids[begin:end], prompt, said, references, where,
        None if all(counted) else counted, max(0, tokens.answer - begin),
    )  # fmt: skip


def _without_chat(renderer: Renderer) -> str:
    if renderer.tokenizer.chat_template is not None:
        return "; leave out --template"
    return "; this base has none: take an instruct model, or give rows of prompt and completion"
