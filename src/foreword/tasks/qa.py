"""`qa`: extractive question answering: find where in a context the answer begins and ends.

The head has two outputs per token, begin and end (Devlin et al. 2019, §4.2). Exact match and F1 over words are those of
SQuAD (Rajpurkar et al. 2016, §6.1): lower case, without articles and punctuation.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from foreword.base import Base
from foreword.data.examples import text_problem
from foreword.errors import ConfigError
from foreword.placing import placed
from foreword.prefix import Prefix
from foreword.settings import check_types
from foreword.tasks.base import Measurement, Measuring, PromptItem, Task, TaskSettings, in_batches, pieces
from foreword.tasks.encode import encoder_side, own_states, pair_ids, require_places
from foreword.tasks.heads import LinearHead, head_for
from foreword.tasks.options import options_of
from foreword.tasks.predictions import Predictions


@dataclass(frozen=True)
class Span(PromptItem):
    """A question with its context.

    spans: for each token the characters of the context that it covers; None for tokens outside the context.
    begin, end: first and last token of the answer. answers: all right answers.
    """

    spans: tuple[tuple[int, int] | None, ...] = ()
    begin: int = 0
    end: int = 0
    context: str = ""
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class SpanOptions:
    """longest: the most tokens that a predicted answer can have."""

    longest: int = 30

    def __post_init__(self) -> None:
        check_types(self)
        if not 1 <= self.longest <= 10**6:
            raise ConfigError("longest", f"must be 1 to 1,000,000, not {self.longest}")


class QuestionAnswering(Task[Span]):
    """Rows {"question", "context", "answers": [{"text", "start"}, …]}, start in characters.

    The first answer is the training target.
    """

    name = "qa"
    metrics = ("loss", "exact_match", "f1")
    input_field = "question"
    target_field = "answers"
    head: LinearHead

    def __init__(self, base: Base, settings: TaskSettings) -> None:
        super().__init__(base, settings)
        if settings.template is not None:
            raise ConfigError("template", "qa reads question and context as a pair, without a template")
        require_places(base, "tokens stand")
        self.options = options_of(SpanOptions, settings.options, self.name)
        self.head = head_for(base, 2)

    def roles(self) -> set[str]:
        return encoder_side(self.base)

    def item(self, fields: Mapping[str, Any], where: str) -> Span | str:
        question, answers = (
            self.settings.input_field or self.input_field,
            self.settings.target_field or self.target_field,
        )
        problem = text_problem(fields, question) or text_problem(fields, "context")
        if problem or (problem := _answers_problem(fields, answers)):
            return problem
        encoded = pair_ids(self.base, fields[question], fields["context"], return_offsets_mapping=True)
        spans = tuple(
            tuple(span) if number == 1 and span[0] < span[1] else None
            for span, number in zip(encoded["offset_mapping"], encoded.sequence_ids(), strict=True)
        )
        texts = tuple(answer["text"] for answer in fields[answers])
        first = fields[answers][0]["start"]
        covered = [
            index for index, span in enumerate(spans) if span and span[0] < first + len(texts[0]) and span[1] > first
        ]
        if not covered:
            return "the answer covers no token of the context"
        ids = tuple(encoded["input_ids"])
        return Span(ids, texts[0], where, spans, covered[0], covered[-1], fields["context"], texts)

    def logits(self, prefix: Prefix | None, items: Sequence[Span]) -> list[Tensor]:
        """Return begin and end scores per item, `[2, tokens]`, −∞ outside the context."""
        states = own_states(self.base, prefix, [item.prompt_ids for item in items])
        scored = pieces(self.head(torch.cat(states)), [len(item.prompt_ids) for item in items])
        return [
            scores.T.masked_fill(placed([span is None for span in item.spans], scores.device), float("-inf"))
            for scores, item in zip(scored, items, strict=True)
        ]

    def predict(self, prefix: Prefix | None, items: Sequence[Span]) -> tuple[Predictions, ...]:
        """Return two predictions per item, begin and end, each of weight ½.

        The classes are the token positions. Items with fewer tokens have −∞ at the rest.
        """
        scores = self.logits(prefix, items)
        most = max(item_scores.shape[1] for item_scores in scores)
        logits = torch.cat([F.pad(item, (0, most - item.shape[1]), value=float("-inf")) for item in scores])
        targets = placed([place for item in items for place in (item.begin, item.end)], logits.device)
        rows = torch.arange(len(items), device=logits.device).repeat_interleave(2)
        return (
            Predictions(targets, rows, given_logits=logits, weights=torch.full_like(targets, 0.5, dtype=logits.dtype)),
        )

    def measure(
        self, prefix: Prefix | None, items: Sequence[Span], metrics: Sequence[str], measuring: Measuring
    ) -> Measurement:
        texts: list[str] = []
        with torch.no_grad():
            for chosen in in_batches(items, measuring.batch_size):
                for item, scores in zip(chosen, self.logits(prefix, chosen), strict=True):
                    texts.append(self._best(item, scores))
                measuring.advance(len(chosen))
        pairs = [(text, item.answers) for text, item in zip(texts, items, strict=True)]
        values = {
            "exact_match": 100
            * sum(max(exact(text, answer) for answer in answers) for text, answers in pairs)
            / len(pairs),
            "f1": 100 * sum(max(word_f1(text, answer) for answer in answers) for text, answers in pairs) / len(pairs),
        }
        return Measurement({name: values[name] for name in metrics if name in values}, texts)

    def _best(self, item: Span, scores: Tensor) -> str:
        """Return the text of the most likely span of 1 to `longest` tokens."""
        joint = scores[0][:, None] + scores[1][None]
        allowed = torch.ones_like(joint, dtype=torch.bool).triu().tril(self.options.longest - 1)
        begin, end = divmod(int(joint.masked_fill(~allowed, float("-inf")).argmax()), joint.shape[1])
        first, last = item.spans[begin], item.spans[end]
        return "" if first is None or last is None else item.context[first[0] : last[1]]


def _answers_problem(fields: Mapping[str, Any], name: str) -> str | None:
    """Return what is wrong with the answers in field `name`; None if they are right."""
    answers = fields.get(name)
    if not isinstance(answers, list) or not answers:
        return f"field {name!r} must be a list of answers, not {answers!r:.60}"
    for answer in answers:
        text, start = (answer.get("text"), answer.get("start")) if isinstance(answer, dict) else (None, None)
        if not isinstance(text, str) or type(start) is not int or not text:
            return f"an answer must be {{'text', 'start'}}, not {answer!r:.60}"
        if fields["context"][start : start + len(text)] != text or start < 0:
            return f"the context has no {text!r:.40} at character {start}"
    return None


def normalised(text: str) -> list[str]:
    """Return the words of a text as SQuAD counts them."""
    bare = "".join(char for char in text.lower() if char not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def exact(answer: str, right: str) -> float:
    """Return 1.0 if both texts have the same words, else 0.0."""
    return float(normalised(answer) == normalised(right))


def word_f1(answer: str, right: str) -> float:
    """Return the F1 of the words that both texts have in common."""
    words, right_words = normalised(answer), normalised(right)
    if not words or not right_words:
        return float(words == right_words)
    common = sum((Counter(words) & Counter(right_words)).values())
    return 2 * common / (len(words) + len(right_words))
