"""Language modelling: the loss of target tokens after a prompt.

Rows are padded on the right and need no attention mask, because a causal model's real tokens never
see what follows them. Logits are computed at target positions alone: a pre-hook on the output layer
picks the hidden states, so that the model's own scaling and softcap still apply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foreword.data.examples import Example
from foreword.errors import UnsupportedModelError
from foreword.models import Base
from foreword.prefix import Prefix


@dataclass(frozen=True)
class Batch:
    """input_ids `[B, n]`, right-padded; targets `[T]`; positions `[T]`: index into the flattened `[B·n]`
    of the hidden state that predicts each target; rows `[T]`: the batch row of each target."""

    input_ids: Tensor
    targets: Tensor
    positions: Tensor
    rows: Tensor

    @property
    def num_targets(self) -> int:
        return int(self.targets.shape[0])


def require_decoder(base: Base) -> None:
    """Raise `UnsupportedModelError` unless `base` is a decoder: this task's loss needs one."""
    if any(slot.role != "decoder" for slot in base.slots):
        raise UnsupportedModelError(
            f"language modelling needs a decoder; {base.name} is a {type(base.model).__name__}. "
            "Attach a prefix to it and use its own loss"
        )


def collate(examples: Sequence[Example], pad_id: int, device: torch.device) -> Batch:
    """One batch. The last token of a row predicts nothing and is left out."""
    width = max(example.num_tokens for example in examples) - 1
    ids: list[list[int]] = []
    targets: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    for row, example in enumerate(examples):
        tokens = (*example.prompt_ids, *example.target_ids)[:-1]
        ids.append([*tokens, *[pad_id] * (width - len(tokens))])
        first = row * width + len(example.prompt_ids) - 1
        positions += range(first, first + len(example.target_ids))
        targets += example.target_ids
        rows += [row] * len(example.target_ids)
    return Batch(*(torch.tensor(part, device=device) for part in (ids, targets, positions, rows)))


def target_logits(base: Base, batch: Batch) -> Tensor:
    """The logits that predict each target token, `[T, vocab]`, float32 or the base's wider dtype; with whatever is
    attached to `base`."""
    with _only_at(base.model, batch.positions):
        logits: Tensor = base.model(input_ids=batch.input_ids, use_cache=False).logits
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
    total, count = summed_loss(base, examples, prefix, batch_size, progress)
    return total / count, count


def summed_loss(
    base: Base,
    examples: Sequence[Example],
    prefix: Prefix | None,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
    part: tuple[int, int] = (0, 1),
) -> tuple[float, int]:
    """(summed loss in nats, number of target tokens) over `examples`, without gradients.

    part: (r, R) computes every R-th batch from the r-th on. All parts run equally many batches, for
    bases that are sharded over processes; one too many is not counted.
    """
    require_decoder(base)
    order = sorted(range(len(examples)), key=lambda index: examples[index].num_tokens)
    cut = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    total, count = 0.0, 0
    with torch.no_grad(), base.attach(prefix):
        for number in range(part[0], -(-len(cut) // part[1]) * part[1], part[1]):
            chosen = [examples[index] for index in cut[min(number, len(cut) - 1)]]
            losses = target_losses(base, collate(chosen, pad_id(base), base.device))
            if number < len(cut):
                total += float(losses.double().sum())
                count += len(losses)
            if progress is not None:
                progress(len(chosen))
    return total, count


def pad_id(base: Base) -> int:
    """A token id for padding; nothing sees it."""
    return 0 if base.tokenizer is None else int(base.tokenizer.pad_token_id or 0)


@contextmanager
def _only_at(model: Any, positions: Tensor) -> Iterator[None]:
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
