"""What classification tasks share: a fixed list of labels, cross entropy, accuracy and F1."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from foreword.base.rendering import Renderer
from foreword.data.examples import text_problem
from foreword.errors import ConfigError
from foreword.extras import require
from foreword.placing import placed
from foreword.prefix import Prefix
from foreword.tasks.base import Measurement, Measuring, PromptItem, Task, TaskSettings, in_batches, noting
from foreword.tasks.predictions import Predictions


@dataclass(frozen=True)
class Labelled(PromptItem):
    """label: number of the class."""

    label: int = 0


L = TypeVar("L", bound=Labelled)


class Classification(Task[L]):
    """A task with one class per row. `logits` scores the classes."""

    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "macro_f1")

    @abstractmethod
    def logits(self, prefix: Prefix | None, items: Sequence[L]) -> Tensor:
        """Return the score of every class, `[B, classes]`."""

    def predict(self, prefix: Prefix | None, items: Sequence[L]) -> tuple[Predictions, ...]:
        logits = self.logits(prefix, items)
        targets = placed([item.label for item in items], logits.device)
        rows = torch.arange(len(items), device=logits.device)
        return (Predictions(targets, rows, given_logits=logits),)

    def measure(
        self, prefix: Prefix | None, items: Sequence[L], metrics: Sequence[str], measuring: Measuring
    ) -> Measurement:
        predicted: list[int] = []
        with torch.no_grad():
            for chosen in in_batches(items, measuring.batch_size):
                predicted += self.logits(prefix, chosen).argmax(-1).tolist()
                measuring.advance(len(chosen))
        labels = [item.label for item in items]
        values = {"accuracy": accuracy(predicted, labels), "macro_f1": macro_f1(predicted, labels)}
        chosen_values = {name: values[name] for name in metrics if name in values}
        return Measurement(chosen_values, [self.answer(label) for label in predicted])

    def answer(self, label: int) -> str:
        return self.labels[label]


class LabelledTexts(Classification[Labelled]):
    """Rows {"text", "label"}; a template, if there is one, turns the text into the prompt.

    The labels are those of the usable training rows, in alphabetical order, unless the options name them.
    """

    def __init__(self, base: Any, settings: TaskSettings) -> None:
        super().__init__(base, settings)
        self._field = settings.target_field or self.target_field
        text_field = settings.input_field or self.input_field
        apart = any(slot.role == "encoder" for slot in base.slots)  # an encoder's text keeps its special tokens
        self.renderer = Renderer(base.tokenizer, settings.template or f"{{{text_field}}}", text_field, apart=apart)

    @property
    def template(self) -> str | None:
        return self.renderer.template

    @property
    def places(self) -> int:
        return self.renderer.places

    def learn(self, rows: Iterable[Mapping[str, Any]]) -> None:
        first: list[Mapping[str, Any]] = []
        if not self.labels:
            fields = (*self.renderer.fields, self._field)
            self.labels = sorted(
                {row[self._field] for row in noting(rows, first) if not any(text_problem(row, name) for name in fields)}
            )
        if len(self.labels) < 2:
            labels = ", ".join(self.labels) or "none"
            raise self.needs(f"rows of two classes or more, told by texts in {self._field!r}; found {labels}", first)

    def item(self, fields: Mapping[str, Any], where: str) -> Labelled | str:
        for name in (*self.renderer.fields, self._field):
            if problem := text_problem(fields, name):
                return problem
        label = fields[self._field]
        if label not in self.labels:
            return f"field {self._field!r} is {label!r:.60}, which is no class of the training rows"
        ids = tuple(self.renderer.prompt_ids(self.renderer.prompt(fields)))
        return Labelled(ids, label, where, self.labels.index(label)) if ids else "the prompt has no tokens"


def accuracy(predicted: Sequence[Any], labels: Sequence[Any]) -> float:
    """Return the share of equal entries, in 0…100."""
    return 100.0 * sum(bool(guess == label) for guess, label in zip(predicted, labels, strict=True)) / len(labels)


def macro_f1(predicted: Sequence[int], labels: Sequence[int]) -> float:
    """Return the mean F1 over the classes that occur, in 0…100."""
    metrics = require("sklearn.metrics", "to measure F1")
    return float(100 * metrics.f1_score(labels, predicted, average="macro", zero_division=0))


def require_words(words: Mapping[str, Any], labels: Sequence[str], field: str) -> None:
    """Raise `ConfigError` unless `words` has an entry for each label, and no other."""
    if unmatched := sorted(set(words) ^ set(labels)):
        problem = "is no class" if unmatched[0] in words else "has no words"
        raise ConfigError(field, f"{unmatched[0]!r} {problem}; the classes are {', '.join(labels)}")
