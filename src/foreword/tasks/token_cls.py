"""`token-cls`: predict a tag for each word, such as named entities.

The tag of a word is predicted at its first token. Of an encoder–decoder only the encoder is used. Entity F1 is
seqeval's (Nakayama 2018; Ramshaw and Marcus 1995 for the IOB2 tags), micro-averaged over entities.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreword.base import Base
from foreword.errors import ConfigError
from foreword.extras import require
from foreword.placing import placed
from foreword.prefix import Prefix
from foreword.tasks.base import Measurement, Measuring, PromptItem, Task, TaskSettings, in_batches, noting, pieces
from foreword.tasks.classify import accuracy
from foreword.tasks.encode import encoder_side, glues_words, own_states, require_places
from foreword.tasks.heads import LinearHead, head_for
from foreword.tasks.predictions import Predictions


@dataclass(frozen=True)
class Tagged(PromptItem):
    """places: position of each word's first token. tags: number of each word's tag."""

    places: tuple[int, ...] = ()
    tags: tuple[int, ...] = ()


class TokenClassification(Task[Tagged]):
    """Rows {"tokens": [word, …], "tags": [tag, …]}; one loss per word."""

    name = "token-cls"
    metrics = ("loss", "accuracy", "entity_f1")
    input_field = "tokens"
    target_field = "tags"
    head: LinearHead

    def __init__(self, base: Base, settings: TaskSettings) -> None:
        super().__init__(base, settings)
        if settings.template is not None:
            raise ConfigError("template", "token-cls reads words as they are, without a template")
        if settings.options:
            raise ConfigError("task_options", f"token-cls has none, but got {', '.join(settings.options)}")
        require_places(base, "words begin")
        self._glues = glues_words(base)
        self._words = settings.input_field or self.input_field
        self._tags = settings.target_field or self.target_field

    def roles(self) -> set[str]:
        return encoder_side(self.base)

    def learn(self, rows: Iterable[Mapping[str, Any]]) -> None:
        first: list[Mapping[str, Any]] = []
        tags = (row.get(self._tags) for row in noting(rows, first))
        self.labels = sorted({tag for row in tags if isinstance(row, list) for tag in row if isinstance(tag, str)})
        if len(self.labels) < 2:
            raise self.needs(f"rows of two tags or more, found {self.labels} in {self._tags!r}", first)
        self.head = head_for(self.base, len(self.labels))

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self.head = head_for(self.base, len(self.labels))

    def item(self, fields: Mapping[str, Any], where: str) -> Tagged | str:
        words, tags = fields.get(self._words), fields.get(self._tags)
        for name, value in ((self._words, words), (self._tags, tags)):
            if not isinstance(value, list) or not value or not all(isinstance(entry, str) and entry for entry in value):
                return f"field {name!r} must be a list of texts, not {value!r:.60}"
        assert isinstance(words, list)
        assert isinstance(tags, list)
        if len(words) != len(tags):
            return f"has {len(words)} words, but {len(tags)} tags"
        if unknown := [tag for tag in tags if tag not in self.labels]:
            return f"tag {unknown[0]!r:.60} is none of the training rows"
        spaced = [words[0], *(f" {word}" for word in words[1:])] if self._glues else words
        encoded = self.base.tokenizer(spaced, is_split_into_words=True)
        places: dict[int, int] = {}
        for place, word in enumerate(encoded.word_ids()):
            if word is not None:
                places.setdefault(word, place)
        if not places:
            return "its words have no tokens"
        kept = sorted(places)
        numbers = tuple(self.labels.index(tags[word]) for word in kept)
        return Tagged(tuple(encoded["input_ids"]), " ".join(tags), where, tuple(places[word] for word in kept), numbers)

    def units(self, item: Tagged) -> int:
        return len(item.tags)

    def logits(self, prefix: Prefix | None, items: Sequence[Tagged]) -> Tensor:
        """Return the score of every tag for each word of all items, one after another, `[words, tags]`."""
        states = own_states(self.base, prefix, [item.prompt_ids for item in items])
        picked = [rows[list(item.places)] for rows, item in zip(states, items, strict=True)]
        scores: Tensor = self.head(torch.cat(picked))
        return scores

    def predict(self, prefix: Prefix | None, items: Sequence[Tagged]) -> tuple[Predictions, ...]:
        logits = self.logits(prefix, items)
        targets = placed([tag for item in items for tag in item.tags], logits.device)
        rows = placed([row for row, item in enumerate(items) for _ in item.tags], logits.device)
        return (Predictions(targets, rows, given_logits=logits),)

    def measure(
        self, prefix: Prefix | None, items: Sequence[Tagged], metrics: Sequence[str], measuring: Measuring
    ) -> Measurement:
        predicted: list[list[str]] = []
        with torch.no_grad():
            for chosen in in_batches(items, measuring.batch_size):
                numbers = pieces(self.logits(prefix, chosen).argmax(-1), [len(item.tags) for item in chosen])
                predicted += [[self.labels[int(number)] for number in row] for row in numbers]
                measuring.advance(len(chosen))
        tags = [[self.labels[tag] for tag in item.tags] for item in items]
        flat = [tag for row in predicted for tag in row], [tag for row in tags for tag in row]
        values = {"accuracy": accuracy(*flat), "entity_f1": entity_f1(predicted, tags)}
        chosen_values = {name: values[name] for name in metrics if name in values}
        return Measurement(chosen_values, [" ".join(row) for row in predicted])


def entity_f1(predicted: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> float:
    """Return the F1 over whole entities, in 0…100."""
    metrics = require("seqeval.metrics", "to measure the F1 of entities")
    return float(100 * metrics.f1_score([list(row) for row in tags], [list(row) for row in predicted], zero_division=0))
