"""`verbalizer`: the language model chooses a class by predicting its word; no head is trained.

Schick & Schütze 2021, "Exploiting Cloze Questions" (PET), §3.1, and Brown et al. 2020 for decoders. A class may have
several words; its score is the mean of their log-probabilities (Hu et al. 2022, "Knowledgeable Prompt-tuning", eq. 3).
A masked language model predicts the word at the template's `[MASK]`; each word must be a single token. A decoder or
encoder–decoder predicts it after the prompt. There a word may have several tokens: its score is their mean
log-probability.

Contextual calibration (Zhao et al. 2021, "Calibrate Before Use", §4) subtracts the score for an empty input,

    score(c | x) − score(c | ""),

so that the input decides the class. In training no gradient flows through the second term.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foreword.base import Base
from foreword.base.inputs import padded
from foreword.data.lm_rows import Example
from foreword.errors import ConfigError
from foreword.placing import placed
from foreword.prefix import Prefix
from foreword.settings import check_types
from foreword.tasks.base import TaskSettings, attached, pieces
from foreword.tasks.classify import Labelled, LabelledTexts, require_words
from foreword.tasks.lm import collate, only_at, require_decoder, target_losses
from foreword.tasks.options import options_of


@dataclass(frozen=True)
class VerbalizerOptions:
    """Options of `verbalizer`.

    words: class → its label word, or a list of several words; empty: the name of the class, with `_` as a space.
    calibrate: True subtracts the scores of an empty input.
    """

    words: Mapping[str, Any] = field(default_factory=dict)
    calibrate: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        for label, words in self.words.items():
            if not isinstance(label, str):
                raise ConfigError("words", f"the class {label!r} must be a text; put it in quotes")
            entries = [words] if isinstance(words, str) else words
            if not isinstance(entries, list | tuple) or not entries or not all(_is_word(word) for word in entries):
                raise ConfigError("words", f"{label}: must be a word or a list of words, not {words!r:.60}")


class Verbalizer(LabelledTexts):
    """Rows {"text", "label"} and a template: `{text} It was [MASK].`, or for a decoder `{text} It was`."""

    name = "verbalizer"

    def __init__(self, base: Base, settings: TaskSettings) -> None:
        super().__init__(base, settings)
        self.options = options_of(VerbalizerOptions, settings.options, self.name)
        self._masked = "[MASK]" in str(self.renderer.template)
        if self._masked and base.tokenizer.mask_token_id is None:
            raise ConfigError("template", f"{base.name} has no mask token; leave [MASK] out")
        if base.model.get_output_embeddings() is None:
            raise ConfigError(
                "task", f"a verbalizer needs a model that predicts words; {base.name} has no output layer"
            )
        if not self._masked:
            self._require_generative()
        self._words: list[list[tuple[int, ...]]] = []

    def _require_generative(self) -> None:
        if all(slot.role == "encoder" for slot in self.base.slots):
            raise ConfigError("template", f"{self.base.name} predicts words at a mask; put [MASK] where the word goes")
        require_decoder(self.base)

    def learn(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.labels = sorted(self.options.words) or self.labels
        super().learn(rows)
        self._find_words()

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self._find_words()

    def _find_words(self) -> None:
        names = {label: label.replace("_", " ") for label in self.labels}
        words = dict(self.options.words) or names
        if self.options.calibrate and not self._empty():
            raise ConfigError("template", "calibrate asks about an empty input, which needs words around it")
        require_words(words, self.labels, "words")
        self._words = [
            [self._tokens(word) for word in ([words[label]] if isinstance(words[label], str) else words[label])]
            for label in self.labels
        ]

    def _tokens(self, word: str) -> tuple[int, ...]:
        """Return the tokens of `word` in the place where the template puts it. Raises `ConfigError`.

        After a prompt a space comes before the word. At a mask the word has no space if it is then one token; else the
        form with fewer tokens is used.
        """
        if self._masked:
            tokenizer = self.base.tokenizer
            whole, spaced = (tokenizer(gap + word, add_special_tokens=False)["input_ids"] for gap in ("", " "))
            ids: list[int] = whole if len(whole) == 1 else min(spaced, whole, key=len)
        else:
            prompt = self.renderer.prompt(dict.fromkeys(self.renderer.fields, "x"))
            ids = self.renderer.target_ids(prompt, word)[: -len(self.renderer.end_ids)]
        if not ids or (self._masked and len(ids) > 1):
            raise ConfigError("words", f"{word!r} has {len(ids)} tokens; at a mask a label word must have one")
        return tuple(ids)

    def item(self, fields: Mapping[str, Any], where: str) -> Labelled | str:
        item = super().item(fields, where)
        if not isinstance(item, str) and self._masked:
            masks = item.prompt_ids.count(self.base.tokenizer.mask_token_id)
            if masks != 1:
                return f"has {masks} mask tokens instead of one"
        return item

    def logits(self, prefix: Prefix | None, items: Sequence[Labelled]) -> Tensor:
        prompts = [item.prompt_ids for item in items]
        scores = self._scores(prefix, prompts)
        if not self.options.calibrate:
            return scores
        with torch.no_grad():
            empty = self._scores(prefix, [self._empty()])
        return scores - empty

    def _empty(self) -> tuple[int, ...]:
        """Return the prompt of an empty input."""
        fields = dict.fromkeys(self.renderer.fields, "")
        return tuple(self.renderer.prompt_ids(self.renderer.prompt(fields)))

    def _scores(self, prefix: Prefix | None, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Return the mean log-probability of each class's words, `[B, classes]`."""
        single = all(len(word) == 1 for words in self._words for word in words)
        by_word = self._at_once(prefix, prompts) if single else self._one_by_one(prefix, prompts)
        counts = [len(words) for words in self._words]
        return torch.stack([scores.mean(0) for scores in pieces(by_word.T, counts)], dim=1)

    def _at_once(self, prefix: Prefix | None, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Score words of one token each in one forward pass, `[B, words]`."""
        base = self.base
        with attached(base, prefix, prompts) as ids:
            inputs, mask = padded(base, ids, left=False).values()
            arguments: dict[str, Any] = {"input_ids": inputs, "attention_mask": mask}
            if not self._masked:
                arguments["use_cache"] = False
            if base.model.config.is_encoder_decoder:
                start = int(base.model.config.decoder_start_token_id or 0)
                arguments["decoder_input_ids"] = inputs.new_full((len(inputs), 1), start)
                positions = torch.arange(len(inputs), device=base.device)
            else:
                positions = self._places(inputs, mask) + torch.arange(len(inputs), device=base.device) * inputs.shape[1]
            with only_at(base.model, positions):
                logits: Tensor = base.model(**arguments).logits[0]
        words = placed([word[0] for words in self._words for word in words], base.device)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return torch.log_softmax(wide, -1).index_select(1, words)

    def _places(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Return the position at which each row's word is predicted: its mask, or its last token."""
        if self._masked:
            masks: Tensor = inputs == self.base.tokenizer.mask_token_id
            return masks.int().argmax(1)
        return mask.sum(1) - 1

    def _one_by_one(self, prefix: Prefix | None, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Score words of several tokens, each word after each prompt, `[B, words]`."""
        words = [word for class_words in self._words for word in class_words]
        pairs = [(prompt, word) for prompt in prompts for word in words]
        with attached(self.base, prefix, [prompt for prompt, _ in pairs]) as ids:
            rows = [
                Example(tuple(prompt_ids), word, "", "", (), "")
                for prompt_ids, (_, word) in zip(ids, pairs, strict=True)
            ]
            losses = target_losses(self.base, collate(rows, self.base))
        means = [-word_losses.mean() for word_losses in pieces(losses, [len(word) for _, word in pairs])]
        return torch.stack(means).view(len(prompts), len(words))


def _is_word(word: Any) -> bool:
    return isinstance(word, str) and bool(word.strip())
