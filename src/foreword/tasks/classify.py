"""What classification tasks share: a fixed list of labels, cross entropy, and the measures of a confusion."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from foreword.data.examples import text_problem
from foreword.errors import ConfigError, DataError
from foreword.models.rendering import Renderer
from foreword.placing import placed
from foreword.prefix import Prefix
from foreword.tasks.base import Item, Measured, Progress, Task, TaskSettings


@dataclass(frozen=True)
class Labelled(Item):
    """label: number of the class."""

    label: int = 0


class Classification(Task):
    """One class per row, scored by `logits`."""

    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "macro_f1")

    @abstractmethod
    def logits(self, prefix: Prefix | None, items: Sequence[Any]) -> Tensor:
        """Scores of every class, `[B, classes]`."""

    def losses(self, prefix: Prefix | None, items: Sequence[Any]) -> Tensor:
        logits = self.logits(prefix, items)
        wanted = placed([item.label for item in items], logits.device)
        return F.cross_entropy(logits, wanted, reduction="none")

    def measure(
        self, prefix: Prefix | None, items: Sequence[Any], metrics: Sequence[str], batch_size: int, progress: Progress
    ) -> Measured:
        found: list[int] = []
        with torch.no_grad():
            for chosen in in_batches(items, batch_size):
                found += self.logits(prefix, chosen).argmax(-1).tolist()
                progress(len(chosen))
        wanted = [item.label for item in items]
        values = {"accuracy": accuracy(found, wanted), "macro_f1": macro_f1(found, wanted)}
        return Measured({name: values[name] for name in metrics if name in values}, [self.answer(n) for n in found])

    def answer(self, label: int) -> str:
        return self.labels[label]


class LabelledTexts(Classification):
    """Rows {"text", "label"}, the text through a template if there is one. The labels are those of the usable rows of the training data,
    in alphabetical order, unless the options name them."""

    def __init__(self, base: Any, settings: TaskSettings) -> None:
        super().__init__(base, settings)
        self._field = settings.target_field or self.target_field
        own = settings.input_field or self.input_field
        apart = any(slot.role == "encoder" for slot in base.slots)  # an encoder's text keeps its special tokens
        self.renderer = Renderer(base.tokenizer, settings.template or f"{{{own}}}", own, apart=apart)

    @property
    def template(self) -> str | None:
        return self.renderer.template

    @property
    def places(self) -> int:
        return self.renderer.places

    def learn(self, rows: Iterable[Mapping[str, Any]]) -> None:
        if not self.labels:
            used = (*self.renderer.fields, self._field)
            self.labels = sorted(
                {row[self._field] for row in rows if not any(text_problem(row, name) for name in used)}
            )
        if len(self.labels) < 2:
            found = ", ".join(self.labels) or "none"
            raise DataError(
                f"{self.name} needs rows of two classes or more, told by texts in {self._field!r}; found {found}"
            )

    def item(self, fields: Mapping[str, Any], where: str) -> Labelled | str:
        for name in (*self.renderer.fields, self._field):
            if problem := text_problem(fields, name):
                return problem
        label = fields[self._field]
        if label not in self.labels:
            return f"field {self._field!r} is {label!r:.60}, which is no class of the training rows"
        ids = tuple(self.renderer.prompt_ids(self.renderer.prompt(fields)))
        return Labelled(ids, label, where, self.labels.index(label)) if ids else "the prompt has no tokens"


def in_batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """`items` in order, `size` at a time."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def accuracy(found: Sequence[Any], wanted: Sequence[Any]) -> float:
    """Share of equal entries, in 0…100."""
    return 100.0 * sum(bool(one == other) for one, other in zip(found, wanted, strict=True)) / len(wanted)


def macro_f1(found: Sequence[int], wanted: Sequence[int]) -> float:
    """Mean F1 over the classes that occur, in 0…100."""
    from sklearn.metrics import f1_score

    return float(100 * f1_score(wanted, found, average="macro", zero_division=0))


def require_words(words: Mapping[str, Any], labels: Sequence[str], field: str) -> None:
    """Raise `ConfigError` unless `words` has an entry for each label, and no other."""
    if odd := sorted(set(words) ^ set(labels)):
        known = "is no class" if odd[0] in words else "has no words"
        raise ConfigError(field, f"{odd[0]!r} {known}; the classes are {', '.join(labels)}")
