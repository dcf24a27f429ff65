"""Language modelling: the loss of target tokens after a prompt.

Rows are padded on the right and need no attention mask in a decoder, because a causal model's real tokens never
see what follows them. An encoder–decoder reads the prompt in its encoder. Logits are computed at target positions alone:
a pre-hook on the output layer picks the hidden states, so that the model's own scaling and softcap still apply.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foreword.data.examples import Example, load_example
from foreword.errors import ConfigError, UnsupportedModelError
from foreword.models import Base
from foreword.models.inputs import padded
from foreword.models.rendering import Renderer
from foreword.prefix import Prefix
from foreword.tasks.base import Measured, Progress, Task, TaskSettings, attached, summed_loss


@dataclass(frozen=True)
class Batch:
    """inputs: by the names of the model's arguments, right-padded. targets `[T]`; positions `[T]`: index into the
    flattened `[B·n]` of the hidden state that predicts each target; rows `[T]`: the batch row of each target."""

    inputs: dict[str, Tensor]
    targets: Tensor
    positions: Tensor
    rows: Tensor

    @property
    def num_targets(self) -> int:
        return int(self.targets.shape[0])


class LanguageModelling(Task):
    """`lm`: rows {"input", "target"}; one loss per target token."""

    name = "lm"
    metrics = ("loss", "perplexity", "bleu", "chrf", "rouge_l", "exact_match")
    input_field = "input"
    target_field = "target"

    def __init__(self, base: Base, settings: TaskSettings) -> None:
        super().__init__(base, settings)
        require_decoder(base)
        if settings.options:
            raise ConfigError("task_options", f"lm has none, but got {', '.join(settings.options)}")
        self.renderer = renderer_for(base, settings.template, settings.input_field or self.input_field)

    @property
    def template(self) -> str | None:
        return self.renderer.template

    @property
    def places(self) -> int:
        return self.renderer.places

    def item(self, fields: Mapping[str, Any], where: str) -> Example | str:
        return load_example(fields, where, self.renderer, self.settings.target_field or self.target_field)

    def units(self, item: Example) -> int:
        return len(item.target_ids)

    def losses(self, prefix: Prefix | None, items: Sequence[Example]) -> Tensor:
        with attached(self.base, prefix, [item.prompt_ids for item in items]) as prompts:
            ready = [replace(item, prompt_ids=tuple(ids)) for item, ids in zip(items, prompts, strict=True)]
            return target_losses(self.base, collate(ready, self.base))

    def measure(
        self, prefix: Prefix | None, items: Sequence[Any], metrics: Sequence[str], batch_size: int, progress: Progress
    ) -> Measured:
        raise NotImplementedError("foreword.evaluation measures generated text")


def renderer_for(base: Base, template: str | None, input_field: str = "input") -> Renderer:
    """The renderer of `base`'s prompts; an encoder's text keeps the end token that its tokenizer adds."""
    return Renderer(base.tokenizer, template, input_field, apart=bool(base.model.config.is_encoder_decoder))


def require_decoder(base: Base) -> None:
    """Raise `UnsupportedModelError` unless `base` continues text: this task's loss needs that."""
    first = base.model.get_submodule(base.model_slots.stacks[0].path)
    reads_text = "input_ids" in inspect.signature(first.forward).parameters
    if all(slot.role == "encoder" for slot in base.slots) or not reads_text:
        raise UnsupportedModelError(
            f"language modelling needs a decoder that reads text; {base.name} is a {type(base.model).__name__}. "
            "Choose another task, or attach a prefix to it and use its own loss"
        )


def collate(examples: Sequence[Example], base: Base) -> Batch:
    """One batch. The last token of a decoder's row predicts nothing and is left out."""
    if base.model.config.is_encoder_decoder:
        return _two_sided(examples, base)
    width = max(example.num_tokens for example in examples) - 1
    ids = [(*example.prompt_ids, *example.target_ids)[:-1] for example in examples]
    first = [row * width + len(example.prompt_ids) - 1 for row, example in enumerate(examples)]
    return _batch(examples, {"input_ids": padded(base, ids, left=False)["input_ids"]}, first, base.device)


def _two_sided(examples: Sequence[Example], base: Base) -> Batch:
    """The prompt in the encoder; the decoder begins with its start token."""
    start = base.model.config.decoder_start_token_id
    if start is None:
        raise ConfigError("model", f"{base.name} names no decoder_start_token_id to begin answers with")
    read = padded(base, [example.prompt_ids for example in examples], left=False)
    written = padded(base, [(start, *example.target_ids[:-1]) for example in examples], left=False)["input_ids"]
    first = [row * written.shape[1] for row in range(len(examples))]
    return _batch(examples, read | {"decoder_input_ids": written}, first, base.device)


def _batch(examples: Sequence[Example], inputs: dict[str, Tensor], first: list[int], device: torch.device) -> Batch:
    """first: per row the flattened position that predicts its first target."""
    targets: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    for row, (example, begin) in enumerate(zip(examples, first, strict=True)):
        targets += example.target_ids
        positions += range(begin, begin + len(example.target_ids))
        rows += [row] * len(example.target_ids)
    return Batch(inputs, *(torch.tensor(part, device=device) for part in (targets, positions, rows)))


def target_logits(base: Base, batch: Batch) -> Tensor:
    """The logits that predict each target token, `[T, vocab]`, float32 or the base's wider dtype; with whatever is
    attached to `base`."""
    with only_at(base.model, batch.positions):
        logits: Tensor = base.model(**batch.inputs, use_cache=False).logits
    return logits[0].to(torch.promote_types(logits.dtype, torch.float32))


def target_losses(base: Base, batch: Batch) -> Tensor:
    """Cross entropy in nats of each target token, `[T]`, of `target_logits`."""
    return F.cross_entropy(target_logits(base, batch), batch.targets, reduction="none")


def mean_loss(
    base: Base,
    examples: Sequence[Example],
    prefix: Prefix | None,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> tuple[float, int]:
    """(mean loss in nats per target token, number of target tokens) over `examples`, without gradients."""
    task = LanguageModelling(base, TaskSettings())
    total, count = summed_loss(task, examples, prefix, batch_size, progress)
    return total / count, count


@contextmanager
def only_at(model: Any, positions: Tensor) -> Iterator[None]:
    """Within: the model's logits are `[1, T, vocab]`, at `positions` of the flattened `[B·n]` alone."""
    head: nn.Module | None = model.get_output_embeddings()
    if head is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no output layer to compute token losses with")

    def pick(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions).unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
