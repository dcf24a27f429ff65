"""Virtual tokens among the input embeddings, for prefixes of merge "embedding".

A virtual token has an id beyond the vocabulary: number i of a row's prompt is `num_embeddings + i`. Where such ids
stand (before the first real token, or inside a template) is decided by whoever makes the ids (`models.inputs`), so mask,
positions, caches and output lengths need no care here. While such a prefix is attached, the embedding table is hooked:
virtual ids get their row's learned embeddings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foreword.errors import AttachError

if TYPE_CHECKING:
    from foreword.attention.attachment import Attachment
    from foreword.attention.inject import Injector


class VirtualTokens:
    """The hooks of one embedding table."""

    def __init__(self, injector: Injector, table: Any) -> None:
        self._injector, self._size = injector, int(table.num_embeddings)
        self._ids: Tensor | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Remember the ids and give the table ones it has."""
        attachment, ids = self._injector.current, args[0]
        self._ids = None
        if attachment is None or not attachment.has_embeddings or not bool((ids >= self._size).any()):
            return None
        self._ids = ids
        return (ids.masked_fill(ids >= self._size, 0), *args[1:])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Put the learned embeddings where virtual ids stood."""
        attachment, ids = self._injector.current, self._ids
        if attachment is None or ids is None:
            return output
        self._ids = None
        rows = attachment.rows.expand(ids.shape[0])
        for row in range(ids.shape[0]):
            places = (ids[row] >= self._size).nonzero()[:, 0]
            if len(places):
                learned = _of_row(attachment, rows[row], ids[row, places] - self._size).to(output)
                output = output.index_put((torch.full_like(places, row), places), learned)
        return output


def _of_row(attachment: Attachment, row: int | None, numbers: Tensor) -> Tensor:
    prompt = None if row is None else attachment.embeddings[row]
    if prompt is None:
        raise AttachError("a row has virtual tokens, but no prefix that is inserted among the embeddings")
    if int(numbers.max()) >= prompt.shape[0]:
        raise AttachError(f"a row has virtual token {int(numbers.max())}, but its prefix has {prompt.shape[0]}")
    return prompt.to(numbers.device)[numbers]


def require_virtual(ids: Tensor, size: int, attachment: Attachment) -> None:
    """Raise `AttachError` if a row with an inserted prompt has no virtual tokens: it would do nothing, in silence."""
    for row, index in enumerate(attachment.rows.expand(ids.shape[0])):
        if index is not None and attachment.embeddings[index] is not None and not bool((ids[row] >= size).any()):
            raise AttachError(
                f"row {row} has a prefix that is inserted among the embeddings, but no virtual tokens; "
                "make its inputs with base.inputs(texts, prefix), or call base.generate"
            )


def tables_of(model: Any) -> list[Any]:
    """The modules that look input embeddings up: the table, and others that share its weights (BART)."""
    table = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        return []
    return [part for part in model.modules() if isinstance(part, nn.Embedding) and part.weight is table.weight]
