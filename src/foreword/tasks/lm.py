"""Language modelling: the loss of target tokens after a prompt.

Rows of a decoder are packed one after another if the decoder allows it. Otherwise they are padded on the right. They
need no attention mask, because in a causal model no real token sees what follows it. An encoder–decoder reads the
prompt in its encoder. The output layer gets only the hidden states at target positions: a pre-hook selects them. If the
model's logits are the output of this layer, the loss is computed chunk by chunk (`head_loss`). If the model scales or
caps them, the loss is computed from its logits.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, compress, repeat
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from foreword.base import Base
from foreword.base.generation import generate_texts_of
from foreword.base.inputs import padded, ready
from foreword.base.rendering import Renderer
from foreword.base.tokenizers import tokenizer_identity
from foreword.config import TEXT_METRICS
from foreword.data import BadRow, Example, LmRows, Reading, RowSettings
from foreword.data.row_cache import Known
from foreword.data.views import token_counts
from foreword.errors import ConfigError, UnsupportedModelError
from foreword.placing import placed
from foreword.prefix import Prefix
from foreword.tasks import text_metrics
from foreword.tasks.base import Measurement, Measuring, Task, TaskSettings, one_or_each
from foreword.tasks.head_loss import plain
from foreword.tasks.predictions import Predictions

_PLAIN: WeakKeyDictionary[nn.Module, bool] = (
    WeakKeyDictionary()
)  # True if a model's logits are the unchanged output of its head


@dataclass(frozen=True)
class Batch:
    """One batch of rows.

    inputs: the model's arguments by name, padded on the right. targets `[T]`: token ids. positions `[T]`: for each
    target the index, into the flattened `[B·n]`, of the hidden state that predicts it. rows `[T]`: its batch row.
    packed: tokens of each row, if the rows stand one after another in a single row; else None.
    """

    inputs: dict[str, Tensor]
    targets: Tensor
    positions: Tensor
    rows: Tensor
    packed: tuple[int, ...] | None = None


class LanguageModelling(Task[Example]):
    """`lm`: rows {"input", "target"}, one prediction per target token."""

    name = "lm"
    metrics = ("loss", "perplexity", *TEXT_METRICS)
    input_field = "input"
    target_field = "target"

    def __init__(self, base: Base, settings: TaskSettings) -> None:
        super().__init__(base, settings)
        require_decoder(base)
        if settings.options:
            raise ConfigError("task_options", f"lm has none, but got {', '.join(settings.options)}")
        apart = bool(base.model.config.is_encoder_decoder)  # an encoder's text keeps its tokenizer's end token
        field = settings.input_field or self.input_field
        self.renderer = Renderer(base.tokenizer, settings.template, field, apart=apart)
        names = settings.input_field, settings.target_field
        self.rows = LmRows(self.renderer, RowSettings(settings.shape, settings.turns, *names))

    @property
    def template(self) -> str | None:
        return "{input}" if self.rows.plain else self.renderer.template

    @property
    def places(self) -> int:
        return self.renderer.places

    def ahead(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows.ahead(rows)

    def item(self, fields: Mapping[str, Any], where: str) -> Example | str:
        return self.rows.item(fields, where)

    def known(self) -> Known | None:
        identity = tokenizer_identity(self.base.tokenizer)
        if identity is None:
            return None
        apart = bool(self.base.model.config.is_encoder_decoder)
        return Known(Example, {"task": self.name, "settings": asdict(self.settings), "apart": apart} | identity)

    def load(self, source: str, reading: Reading) -> tuple[Sequence[Example], list[BadRow]]:
        self.rows.start(source)
        loaded = super().load(source, reading)
        self.rows.finish()
        return loaded

    def pads(self, items: Sequence[Example], inserted: bool) -> bool:
        longest = int(token_counts(items).max(initial=0))
        return inserted or not self.settings.packing or longest - 1 > self.base.model_slots.packing_limit

    def units(self, item: Example) -> int:
        return item.num_learned

    def predict(self, prefix: Prefix | None, items: Sequence[Example]) -> tuple[Predictions, ...]:
        rows, prompts = ready(self.base, [prefix] * len(items), [item.prompt_ids for item in items])
        inserted = any(row is not None and row.kind.inserted for row in rows)
        examples = [replace(item, prompt_ids=tuple(ids)) for item, ids in zip(items, prompts, strict=True)]
        batch = collate(examples, self.base, self.settings.packing and not inserted)
        with self.base.attach(one_or_each(rows), packed=batch.packed):
            return (target_predictions(self.base, batch),)

    def rendering(self) -> dict[str, Any]:
        return self.rows.rendering()

    def derived(self, loss: float) -> dict[str, float]:
        return {"loss": loss, "perplexity": math.exp(loss)}

    def measure(
        self, prefix: Prefix | None, items: Sequence[Example], metrics: Sequence[str], measuring: Measuring
    ) -> Measurement:
        """Compute text metrics of greedy answers, with all references of each row."""
        texts = self.answers(prefix, items, measuring)
        references = [item.references for item in items]
        values: dict[str, float] = {}
        signatures: dict[str, str] = {}
        if "bleu" in metrics:
            values["bleu"], signatures["bleu"] = text_metrics.bleu(texts, references)
        if "chrf" in metrics:
            values["chrf"], signatures["chrf"] = text_metrics.chrf(texts, references)
        if "rouge_l" in metrics:
            values["rouge_l"] = text_metrics.rouge_l(texts, references)
        if "exact_match" in metrics:
            values["exact_match"] = text_metrics.exact_match(texts, references)
        return Measurement(values, texts, signatures)

    def answers(self, prefix: Prefix | None, items: Sequence[Example], measuring: Measuring) -> list[str]:
        """Return the model's greedy answer to each prompt, in row order."""
        stops = self.renderer.stop_ids(self.base.model.generation_config)
        prompts = [(list(item.asked_ids), stops) for item in items]
        options = {"max_new_tokens": measuring.max_new_tokens}
        prefixes = [prefix] * len(items)
        texts = generate_texts_of(self.base, prompts, prefixes, options, measuring.batch_size, measuring.advance)
        return [measuring.clean(text) for text in texts]


def require_decoder(base: Base) -> None:
    """Raise `UnsupportedModelError` unless `base` has a decoder and reads text; the loss needs both."""
    first = base.model.get_submodule(base.model_slots.stacks[0].path)
    reads_text = "input_ids" in inspect.signature(first.forward).parameters
    if all(slot.role == "encoder" for slot in base.slots) or not reads_text:
        raise UnsupportedModelError(
            f"language modelling needs a decoder that reads text; {base.name} is a {type(base.model).__name__}. "
            "Choose another task, or attach a prefix to it and use its own loss"
        )


def collate(examples: Sequence[Example], base: Base, packing: bool = False) -> Batch:
    """Make one batch of `examples`. The last token of a decoder's row predicts nothing and is left out.

    packing: True packs the rows if `base` allows it.
    """
    if base.model.config.is_encoder_decoder:
        return _two_sided(examples, base)
    width = max(example.num_tokens for example in examples) - 1
    ids = [(*example.prompt_ids, *example.target_ids)[:-1] for example in examples]
    if packing and width <= base.model_slots.packing_limit:
        return _packed(examples, ids, base)
    first = [row * width + len(example.prompt_ids) - 1 for row, example in enumerate(examples)]
    return _batch(examples, {"input_ids": padded(base, ids, left=False)["input_ids"]}, first, base.device)


def _packed(examples: Sequence[Example], ids: Sequence[tuple[int, ...]], base: Base) -> Batch:
    lengths = tuple(len(row) for row in ids)
    starts = accumulate(lengths, initial=0)
    first = [start + len(example.prompt_ids) - 1 for start, example in zip(starts, examples, strict=False)]
    packed_ids = placed([[token for row in ids for token in row]], base.device)
    return replace(_batch(examples, {"input_ids": packed_ids}, first, base.device), packed=lengths)


def _two_sided(examples: Sequence[Example], base: Base) -> Batch:
    """Make a batch for an encoder–decoder: the encoder reads the prompt, the decoder begins with its start token."""
    start = base.model.config.decoder_start_token_id
    if start is None:
        raise ConfigError("model", f"{base.name} names no decoder_start_token_id to begin answers with")
    encoder_inputs = padded(base, [example.prompt_ids for example in examples], left=False)
    decoder_ids = padded(base, [(start, *example.target_ids[:-1]) for example in examples], left=False)["input_ids"]
    first = [row * decoder_ids.shape[1] for row in range(len(examples))]
    return _batch(examples, encoder_inputs | {"decoder_input_ids": decoder_ids}, first, base.device)


def _batch(examples: Sequence[Example], inputs: dict[str, Tensor], first: list[int], device: torch.device) -> Batch:
    """Make the batch. first: for each row the flattened position that predicts its first target."""
    targets: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    for row, (example, begin) in enumerate(zip(examples, first, strict=True)):
        places: Iterable[int] = range(begin, begin + len(example.target_ids))
        targets += compress(example.target_ids, example.learned or repeat(True))
        positions += compress(places, example.learned or repeat(True))
        rows += [row] * example.num_learned
    return Batch(inputs, placed(targets, device), placed(positions, device), placed(rows, device))


def target_logits(base: Base, batch: Batch) -> Tensor:
    """Return the logits that predict each target token, `[T, vocab]`, float32 or the base's wider dtype.

    The prefix is the one attached to `base`.
    """
    with only_at(base.model, batch.positions):
        logits: Tensor = base.model(**batch.inputs, use_cache=False).logits
    return logits[0].to(torch.promote_types(logits.dtype, torch.float32))


def target_predictions(base: Base, batch: Batch) -> Predictions:
    """Return the prediction of each target token, with the prefix that is attached to `base`.

    They hold hidden states and the output layer if the model's logits are the output of this layer; else logits.
    """
    model = base.model
    head = model.get_output_embeddings()
    if not plain(head) or _PLAIN.get(model) is False:
        return Predictions(batch.targets, batch.rows, given_logits=target_logits(base, batch))
    if model not in _PLAIN:
        _PLAIN[model] = _logits_are_unchanged(base, batch)
        return target_predictions(base, batch)
    with only_at(model, batch.positions, shown=0) as picked:
        model(**batch.inputs, use_cache=False)
    return Predictions(batch.targets, batch.rows, hidden=picked[0], head=head)


def target_losses(base: Base, batch: Batch) -> Tensor:
    """Return the cross entropy in nats of each target token, `[T]`, with the prefix that is attached to `base`."""
    return target_predictions(base, batch).target_losses()


def _logits_are_unchanged(base: Base, batch: Batch) -> bool:
    """Return True if the model's logits are the output of its output layer, without a softcap or a scale."""
    with torch.no_grad():
        with only_at(base.model, batch.positions, shown=1) as picked:
            logits = base.model(**batch.inputs, use_cache=False).logits
        return torch.equal(logits[0], base.model.get_output_embeddings()(picked[0][:1]))


@contextmanager
def only_at(model: Any, positions: Tensor, shown: int | None = None) -> Iterator[list[Tensor]]:
    """Within the block the model computes logits only at `positions` of the flattened `[B·n]`: `[1, T, vocab]`.

    Yields a list; each forward pass appends the hidden states at these positions, `[T, width]`.
    shown: number of these states that the output layer gets; None: all.
    Raises `UnsupportedModelError` for a model without an output layer.
    """
    head: nn.Module | None = model.get_output_embeddings()
    if head is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no output layer to compute token losses with")
    picked: list[Tensor] = []

    def pick(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        picked.append(hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions))
        return (picked[-1][:shown].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield picked
    finally:
        handle.remove()
