"""What a base is asked: texts, rows of fields and conversations, rendered as each row's prefix was trained."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from foreword.base.conversation import ChatFormat, Unrendered
from foreword.base.frozen import FrozenModel
from foreword.base.rendering import Renderer, named_fields, template_digest
from foreword.errors import ChatTemplateWarning, ConfigError
from foreword.plain import text_problem
from foreword.prefix import Prefix
from foreword.prefix.records import recorded_config, recorded_template
from foreword.shapes import SHAPES, Conversation, Misfit, Pair, Plain
from foreword.shapes.forms import conversation, message, text

Question = str | Mapping[str, Any] | Sequence[Mapping[str, Any]]


def prepare(
    base: FrozenModel, prompts: Sequence[Question], rows: Sequence[Prefix | None], template: str | None
) -> list[tuple[list[int], list[int]]]:
    """Return (token ids of the rendered prompt, stop tokens) of each prompt.

    rows: the prefix of each. template: replaces the templates that prefixes were trained with.
    Raises `ConfigError` that names the prompt, for instance prompts[3].
    """
    if isinstance(prompts, str | Mapping):
        kind = "a text" if isinstance(prompts, str) else "a row"
        raise ConfigError("prompts", f"must be a list; put {kind} in one: [prompt]")
    if prompts and all(isinstance(entry, Mapping) and {"role", "content"} <= set(entry) for entry in prompts):
        raise ConfigError("prompts", "is one conversation; give a list of conversations: [messages]")
    if template is not None:
        _require_text("template", template)
    askers: dict[int, Asker] = {}
    prepared = []
    for number, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        if id(row) not in askers:
            askers[id(row)] = Asker(base, row, template)
        prepared.append(askers[id(row)].ask(prompt, f"prompts[{number}]"))
    return prepared


class Asker:
    """Renders questions for one prefix. template: replaces the one that it was trained with."""

    def __init__(self, base: FrozenModel, prefix: Prefix | None, template: str | None = None) -> None:
        trained = None if prefix is None else recorded_template(prefix.record)
        config = {} if prefix is None else recorded_config(prefix.record)
        self._base, self._named = base, config.get("input_field")
        apart = bool(base.model.config.is_encoder_decoder)
        self.renderer = Renderer(base.tokenizer, template or trained, apart=apart)
        self._chat = ChatFormat(base.tokenizer)
        if prefix is not None and self.renderer.chat:
            _require_template(base, prefix)

    def ask(self, prompt: Question, where: str) -> tuple[list[int], list[int]]:
        """Return (token ids, stop tokens). Raises `ConfigError` that names `where`."""
        if isinstance(prompt, str):
            _require_text(where, prompt)
        try:
            text = self._text(prompt)
        except (Misfit, Unrendered) as problem:
            raise ConfigError(where, str(problem)) from problem
        tokenizer = self._base.tokenizer
        ids = self.renderer.prompt_ids(text) or [tokenizer.bos_token_id or tokenizer.eos_token_id]
        return ids, self.renderer.stop_ids(self._base.model.generation_config)

    def _text(self, prompt: Any) -> str:
        if isinstance(prompt, str):
            return self._of_input(prompt)
        if isinstance(prompt, Mapping):
            return self._of_row(prompt)
        if isinstance(prompt, list | tuple):
            return self._of_messages([message(entry, number) for number, entry in enumerate(prompt, start=1)], None)
        raise Misfit(f"must be text, fields or messages, not {type(prompt).__name__}")

    def _of_input(self, text: str) -> str:
        fields = self.renderer.fields
        if len(fields) > 1:
            raise Misfit(f"is one text, but the template {self.renderer.template!r:.200} needs {', '.join(fields)}")
        return self.renderer.prompt({fields[0]: text})

    def _of_row(self, row: Mapping[str, Any]) -> str:
        """Return the prompt of a row. Its answer, if it has one, is left out."""
        names = named_fields(self.renderer.template)
        missing = [name for name in names if name not in row]
        if names and not missing:
            return self.renderer.prompt({name: text(row, name, empty=True) for name in names})
        if len(names) > 1:
            raise Misfit(
                f"lacks {', '.join(map(repr, missing))}, which the template {self.renderer.template!r:.200} names"
            )
        if isinstance(self._named, str) and self._named in row:
            return self._of_input(text(row, self._named, empty=True))
        shape = next((shape for shape in SHAPES.values() if shape.asks(row)), None)
        form = None if shape is None else shape.read(row, learned=False)
        if isinstance(form, Conversation):
            return self._of_messages(list(form.messages), form.tools)
        if isinstance(form, Plain):
            return self._of_input(form.text)
        if isinstance(form, Pair):
            return self._of_input(form.input)
        texts = [name for name, value in row.items() if isinstance(value, str)]
        if len(texts) != 1:
            raise Misfit(
                f"has the fields {', '.join(map(str, row)) or 'none'}; name the input with a template: '{{field}}'"
            )
        return self._of_input(text(row, texts[0], empty=True))

    def _of_messages(self, messages: list[dict[str, Any]], tools: Any) -> str:
        """Return the text after which the assistant speaks; answers at the end of the conversation are left out."""
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        if not messages:
            raise Misfit("has no message to answer")
        if self.renderer.chat:
            form = conversation(messages, tools, learned=False)
            return self._chat.prompt(form.messages, form.tools)
        if len(messages) > 1:
            raise Misfit(
                f"has {len(messages)} messages, but is rendered by the template {self.renderer.template!r:.200}"
            )
        return self._of_input(messages[0]["content"])


def _require_template(base: FrozenModel, prefix: Prefix) -> None:
    """Warn if `prefix` was trained with another chat template than the base's."""
    rendering = prefix.record.get("rendering")
    trained = rendering.get("chat_template") if isinstance(rendering, Mapping) else None
    if trained is not None and trained != template_digest(base.tokenizer):
        warnings.warn(
            f"{base.name} has another chat template than the prefix was trained with; answers may suffer. "
            "Load the base with the tokenizer of the training",
            ChatTemplateWarning,
            stacklevel=2,
        )


def _require_text(what: str, text: Any) -> None:
    """Raise `ConfigError` that names `what` unless `text` is one that a tokenizer reads."""
    if not isinstance(text, str):
        raise ConfigError(what, f"must be text, not {type(text).__name__}")
    if problem := text_problem(text, null=True):
        raise ConfigError(what, f"{problem}; write it in UTF-8")
