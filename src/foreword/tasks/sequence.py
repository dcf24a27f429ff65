"""`seq-cls`: choose a class for a whole text, and `multiple-choice`: choose one of several answers to a question.

Liu et al. 2022, "P-Tuning v2", §3.3: deep prefixes with a linear head on the frozen model's states instead of a
verbalizer. Parameters of the head: (hidden + 1) · classes; of multiple choice hidden + 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from foreword.base import Base
from foreword.data.examples import text_problem
from foreword.errors import ConfigError
from foreword.prefix import Prefix
from foreword.settings import check_types
from foreword.tasks.base import TaskSettings
from foreword.tasks.classify import Classification, Labelled, LabelledTexts
from foreword.tasks.encode import Pooling, pair_ids, pooled_states
from foreword.tasks.heads import LinearHead, head_for
from foreword.tasks.options import options_of


@dataclass(frozen=True)
class SequenceOptions:
    """pooling: how states become one vector (`encode.pooled_states`). labels: classes; empty: from training rows."""

    pooling: Pooling = "auto"
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)


class SequenceClassification(LabelledTexts):
    """`seq-cls`: rows {"text", "label"}."""

    name = "seq-cls"
    head: LinearHead

    def __init__(self, base: Base, settings: TaskSettings) -> None:
        super().__init__(base, settings)
        self.options = options_of(SequenceOptions, settings.options, self.name)
        self.labels = list(self.options.labels)
        if len(set(self.labels)) < len(self.labels):
            raise ConfigError("labels", f"name each class once, not {', '.join(self.labels)}")

    def learn(self, rows: Iterable[Mapping[str, Any]]) -> None:
        super().learn(rows)
        self.head = head_for(self.base, len(self.labels))

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self.head = head_for(self.base, len(self.labels))

    def logits(self, prefix: Prefix | None, items: Sequence[Labelled]) -> Tensor:
        states = pooled_states(self.base, prefix, [item.prompt_ids for item in items], self.options.pooling)
        scores: Tensor = self.head(states)
        return scores


@dataclass(frozen=True)
class Choices(Labelled):
    """choice_ids: token ids of the question with each answer."""

    choice_ids: tuple[tuple[int, ...], ...] = ()

    @property
    def num_tokens(self) -> int:
        return max(len(ids) for ids in self.choice_ids)


@dataclass(frozen=True)
class ChoiceOptions:
    """pooling: as in seq-cls."""

    pooling: Pooling = "auto"

    def __post_init__(self) -> None:
        check_types(self)


class MultipleChoice(Classification[Choices]):
    """`multiple-choice`: rows {"question", "choices": [text, …], "label": number of the right one}.

    A "context", if there is one, stands before the question. The base reads each answer with the question, and a head
    with a single output scores it.
    """

    name = "multiple-choice"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    input_field = "question"
    head: LinearHead

    def __init__(self, base: Base, settings: TaskSettings) -> None:
        super().__init__(base, settings)
        if settings.template is not None:
            raise ConfigError("template", "multiple-choice reads question and answer as a pair, without a template")
        self.options = options_of(ChoiceOptions, settings.options, self.name)
        self.head = head_for(base, 1)

    def item(self, fields: Mapping[str, Any], where: str) -> Choices | str:
        question_field = self.settings.input_field or self.input_field
        label_field = self.settings.target_field or self.target_field
        if problem := text_problem(fields, question_field) or _choices_problem(fields, label_field):
            return problem
        question = "\n".join(filter(None, (fields.get("context"), fields[question_field])))
        label = int(fields[label_field])
        ids = tuple(tuple(pair_ids(self.base, question, choice)["input_ids"]) for choice in fields["choices"])
        return Choices(ids[0], fields["choices"][label], where, label, ids)

    def logits(self, prefix: Prefix | None, items: Sequence[Choices]) -> Tensor:
        """Return the score of every choice, `[B, most choices]`, −∞ if a row has fewer."""
        counts = [len(item.choice_ids) for item in items]
        prompts = [ids for item in items for ids in item.choice_ids]
        scores = self.head(pooled_states(self.base, prefix, prompts, self.options.pooling))[:, 0]
        return torch.nn.utils.rnn.pad_sequence(
            list(scores.split(counts)), batch_first=True, padding_value=float("-inf")
        )

    def answer(self, label: int) -> str:
        return str(label)


def _choices_problem(fields: Mapping[str, Any], label_field: str) -> str | None:
    """Return what is wrong with choices, label or context; None if they are right."""
    choices, label = fields.get("choices"), fields.get(label_field)
    if not isinstance(choices, list) or len(choices) < 2:
        return f"field 'choices' must be a list of two texts or more, not {choices!r:.60}"
    for choice in choices:
        if problem := text_problem({"choices": choice}, "choices"):
            return problem
    if type(label) is not int or not 0 <= label < len(choices):
        return f"field {label_field!r} must be 0 to {len(choices) - 1}, not {label!r:.60}"
    context = fields.get("context")
    return None if context is None else text_problem(fields, "context")
