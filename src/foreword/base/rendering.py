"""Prompts as the model reads them: a template with fields, or the tokenizer's chat template."""

from __future__ import annotations

import hashlib
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from foreword.base.chat import render_chat
from foreword.config import MOST_TOKENS
from foreword.errors import ConfigError
from foreword.plain import shown, text_problem
from foreword.prefix.records import recorded_template

CHAT = "chat"  # the name that a record has for the tokenizer's own chat template
_MARK = "\u241f"
_VIRTUAL = re.compile(r"\[V\](?:\*(\d+))?")
_PLACE = "\ue000"  # private use: stands for one virtual token in a rendered prompt
PLACE_ID = 2**40  # id of the first place; far from any token's
LONGEST_TEMPLATE = 100_000  # characters
LONGEST_PROMPT = 32 * 2**20  # characters


def require_tokenizer(tokenizer: Any, name: str) -> Any:
    """Return `tokenizer`. Raises `ConfigError` if it is None: the base called `name` takes tensors only."""
    if tokenizer is None:
        raise ConfigError(
            "tokenizer",
            f"{name} has none, so it takes tensors only; put its tokenizer files into the model's folder and load it "
            "with foreword.load, or attach the prefix and call base.model with token ids",
        )
    return tokenizer


def template_digest(tokenizer: Any) -> str | None:
    """Return the SHA-256 of a tokenizer's chat template; None if it has none."""
    if tokenizer.chat_template is None:
        return None
    return "sha256:" + hashlib.sha256(repr(tokenizer.chat_template).encode()).hexdigest()


class Renderer:
    """Turns a row's fields into token ids, in the same way in training, evaluation and generation.

    template: the whole prompt, with `{field}` where a field goes (`{{` for a brace). `[V]*3` is a place for three
    virtual tokens, `[MASK]` the tokenizer's mask. None: the tokenizer's chat template with `input_field` as the user's
    message, or the bare input if there is no chat template.
    One space separates prompt and target unless the prompt ends in white space.
    apart: prompt and target are two separate texts (encoder–decoders), each with the tokenizer's special tokens.
    Raises `ConfigError` for a malformed template, one of more than `LONGEST_TEMPLATE` characters, and one with places
    for more than 65,536 virtual tokens (the longest prefix, `config.MOST_TOKENS`).
    """

    def __init__(
        self, tokenizer: Any, template: str | None = None, input_field: str = "input", apart: bool = False
    ) -> None:
        if template is not None and not isinstance(template, str):
            raise ConfigError("template", f"must be text, not {shown(template)}")
        self.tokenizer = tokenizer
        self.apart = apart
        self.chat = uses_chat(tokenizer, template)
        self.template = CHAT if self.chat else template or f"{{{input_field}}}"
        names = [input_field] if self.chat else fields_of(self.template)
        self.fields = tuple(dict.fromkeys(names))
        self._counts = Counter(names)  # how often each field stands in the template
        self.places = 0 if self.chat else _places(self.template)
        self.end_ids = [self._end_of_turn() if self.chat else tokenizer.eos_token_id]
        self._known: dict[str, list[int]] = {}

    def prompt(self, fields: Mapping[str, str]) -> str:
        """Return the text of the prompt. Raises `ConfigError` if it has more than `LONGEST_PROMPT` characters."""
        if not self.chat:
            self._require_size(fields)
            template = _VIRTUAL.sub(lambda match: _PLACE * int(match[1] or 1), self.template)
            if "[MASK]" in template:
                template = template.replace("[MASK]", str(self.tokenizer.mask_token))
            values = {name: fields[name] for name in self.fields}
            if self.places:  # the character in a field is not a place
                values = {name: value.replace(_PLACE, "\ufffd") for name, value in values.items()}
            return template.format_map(values)
        message = {"role": "user", "content": fields[self.fields[0]]}
        return render_chat(self.tokenizer, [message], add_generation_prompt=True)

    def _require_size(self, fields: Mapping[str, str]) -> None:
        size = len(self.template) + sum(len(fields[name]) * count for name, count in self._counts.items())
        if "[MASK]" in self.template:
            size += self.template.count("[MASK]") * len(str(self.tokenizer.mask_token))
        if size > LONGEST_PROMPT:
            raise ConfigError("template", f"makes a prompt of {size:,} characters; at most {LONGEST_PROMPT:,} are made")

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the token ids of a rendered prompt. A chat template contains its own special tokens.

        Raises `ConfigError` for half a surrogate pair in it, which no tokenizer reads.
        """
        if problem := text_problem(prompt, null=True):
            raise ConfigError("prompt", f"{shown(prompt)} {problem}")
        if self.places and _PLACE in prompt:
            return self._with_places(prompt)
        ids = self._known.get(prompt) or self.tokenizer(prompt, add_special_tokens=not self.chat)["input_ids"]
        if (
            not (self.chat or self.apart)
            and ids
            and ids[-1] == self.tokenizer.eos_token_id
            and not prompt.endswith(self.tokenizer.eos_token or "\0")
        ):
            ids = ids[:-1]  # some tokenizers add an end token to every text
        return list(ids)

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text on its own, with the tokenizer's special tokens and the end token."""
        ids: list[int] = self.tokenizer(text)["input_ids"]
        end = self.tokenizer.eos_token_id
        return tuple(ids if end is None or (ids and ids[-1] == end) else [*ids, end])

    def ahead(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Encode (prompt, target) pairs in one call, which is many times faster than one by one.

        `prompt_ids` and `target_ids` then use the result. The result of an earlier call is dropped.
        """
        prompts = [prompt for prompt, _ in pairs]
        wholes = [] if self.apart else [prompt + _gap(prompt) + target for prompt, target in pairs]
        texts = [] if self.places else [text for text in (*prompts, *wholes) if text]
        ids = self.tokenizer(texts, add_special_tokens=not self.chat)["input_ids"] if texts else []
        self._known = dict(zip(texts, ids, strict=True))

    def _with_places(self, prompt: str) -> list[int]:
        """Return the token ids of a prompt with places. Place i has the id `PLACE_ID` + i, for `base.inputs`."""
        pieces = prompt.split(_PLACE)
        texts = list(dict.fromkeys(piece for piece in pieces if piece))
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        of_text = dict(zip(texts, encoded, strict=True)) | {"": []}
        ids: list[int] = list(of_text[pieces[0]])
        for number, piece in enumerate(pieces[1:]):
            ids += [PLACE_ID + number, *of_text[piece]]
        # put the special tokens around the ids that the tokenizer puts around "x"
        whole: list[int] = self.tokenizer("x")["input_ids"]
        bare: list[int] = self.tokenizer("x", add_special_tokens=False)["input_ids"]
        at = next((start for start in range(len(whole)) if whole[start : start + len(bare)] == bare), 0)
        return [*whole[:at], *ids, *whole[at + len(bare) :]]

    def target_ids(self, prompt: str, target: str) -> list[int]:
        """Return the token ids of `target` after `prompt`, with the end token."""
        if self.apart:
            ids: list[int] = self.tokenizer(target, add_special_tokens=False)["input_ids"]
            return ids + self.end_ids
        gap = _gap(prompt)
        head = self.prompt_ids(prompt)
        whole = self.prompt_ids(prompt + gap + target)
        if whole[: len(head)] == head:
            return whole[len(head) :] + self.end_ids
        tail: list[int] = self.tokenizer(gap + target, add_special_tokens=False)["input_ids"]
        return tail + self.end_ids

    def stop_ids(self, generation_config: Any) -> list[int]:
        """Return the tokens that end a generated answer: the renderer's end token and those of the model."""
        stops = generation_config.eos_token_id
        stops = [] if stops is None else stops if isinstance(stops, list) else [stops]
        return sorted({*stops, *self.end_ids})

    def _end_of_turn(self) -> int:
        """Return the token that ends the assistant's message in the chat template."""
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _MARK}]
        tail = render_chat(self.tokenizer, messages).rpartition(_MARK)[2]
        special = set(self.tokenizer.all_special_ids)
        for token in self.tokenizer(tail, add_special_tokens=False)["input_ids"]:
            if token in special:
                return int(token)
        return int(self.tokenizer.eos_token_id)


def _gap(prompt: str) -> str:
    return "" if not prompt or prompt[-1].isspace() else " "


def _places(template: str) -> int:
    """Return the number of virtual tokens that a template has places for. Raises `ConfigError` for too many."""
    counts = [match[1] or "1" for match in _VIRTUAL.finditer(template)]
    if any(len(count) > 9 for count in counts) or (places := sum(map(int, counts))) > MOST_TOKENS:
        raise ConfigError("template", f"{shown(template)} has places for more than {MOST_TOKENS:,} virtual tokens")
    return places


def named_fields(template: str | None, input_field: str = "input") -> list[str]:
    """Return the fields of a row that a template names itself.

    None if it has the input only, whatever a row calls it, or is a chat template.
    """
    if template is None or template == CHAT:
        return []
    names = list(dict.fromkeys(fields_of(template)))
    return [] if names == [input_field] else names


def recorded_fields(record: Mapping[str, Any]) -> list[str]:
    """Return the fields that a record's template names; [] if it can't be used or names the input only."""
    try:
        return named_fields(recorded_template(record))
    except ConfigError:
        return []


def uses_chat(tokenizer: Any, template: str | None) -> bool:
    """Return True if prompts of `template` are rendered with the tokenizer's chat template."""
    return template == CHAT or (template is None and tokenizer.chat_template is not None)


def fields_of(template: str) -> list[str]:
    """Return the names of the fields, as often as they stand in the template."""
    if len(template) > LONGEST_TEMPLATE:
        raise ConfigError("template", f"has {len(template):,} characters; at most {LONGEST_TEMPLATE:,} are read")
    if problem := text_problem(template):
        raise ConfigError("template", f"{shown(template)} {problem}")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError("template", f"{shown(template)}: {error}") from error
    names = []
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if not name.isidentifier() or spec or conversion:
            raise ConfigError(
                "template", f"{shown(template)}: write a plain field such as {{input}}, not {{{name:.60}}}"
            )
        names.append(name)
    if not names:
        raise ConfigError("template", f"{shown(template)} has no {{field}} in it, so each prompt would be the same")
    return names
