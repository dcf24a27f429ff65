"""Virtual tokens among the input embeddings, for prefixes that are inserted there.

A virtual token has an id beyond the vocabulary: token i of a row's prompt has the id `num_embeddings + i`.
`base.inputs` decides where such ids stand (before the first real token, or inside a template). They are part of the
input, so mask, positions, caches and output lengths are right without further work. While such a prefix is attached,
the embedding table is hooked: virtual ids get the learned embeddings of their row.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from foreword.attach.attachment import Attachment
from foreword.attach.state import PerThread, State
from foreword.errors import AttachError
from foreword.placing import placed


class _LookUp:
    """What `before` leaves for `after`: the ids, and the prompts of their rows."""

    def __init__(self) -> None:
        self.found: tuple[Tensor, Prompts] | None = None


class VirtualTokens:
    """The hooks of one embedding table."""

    def __init__(self, state: State, table: Any) -> None:
        self._state, self._size = state, int(table.num_embeddings)
        self._look_up = PerThread(_LookUp)

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Remember the ids, and replace virtual ids by one that the table has."""
        attachment, ids = self._state.current, args[0]
        self._look_up.of.found = None
        if attachment is None or not attachment.has_embeddings or not bool((virtual := ids >= self._size).any()):
            return None
        prompts, number = prompts_of(attachment, ids), ids - self._size
        if bool((beyond := virtual & (number >= prompts.length)).any()):
            raise _unknown_token(attachment, beyond, number)
        self._look_up.of.found = ids, prompts
        return (ids.masked_fill(virtual, 0), *args[1:])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Put the learned embeddings in the places of the virtual ids."""
        found = self._look_up.of.found
        if found is None:
            return output
        (ids, prompts), self._look_up.of.found = found, None
        virtual = ids >= self._size
        places = (prompts.first + ids - self._size).masked_fill(~virtual, 0)
        learned = prompts.table.to(output).index_select(0, places.flatten()).view(*ids.shape, -1)
        return torch.where(virtual.unsqueeze(-1), learned, output)


class Prompts(NamedTuple):
    """The prompts of an attachment and who uses them.

    table `[Σ m, width]`: all prompts, concatenated. first `[B, 1]`: where the prompt of each row begins in it.
    length `[B, 1]`: virtual tokens of each row; 0 if a row has no prompt.
    """

    table: Tensor
    first: Tensor
    length: Tensor


def prompts_of(attachment: Attachment, ids: Tensor) -> Prompts:
    """Return the prompts of `attachment` for the rows of `ids` `[B, n]`."""
    tables = [prefix.embeddings for prefix in attachment.prefixes]
    prompts = [table for table in tables if table is not None]
    sizes = [0 if table is None else len(table) for table in tables]
    starts = list(accumulate(sizes, initial=0))
    rows = attachment.rows.expand(ids.shape[0])
    first = placed([[0 if row is None else starts[row]] for row in rows], ids.device)
    length = placed([[0 if row is None else sizes[row]] for row in rows], ids.device)
    return Prompts(prompts[0] if len(prompts) == 1 else torch.cat(prompts), first, length)


def _unknown_token(attachment: Attachment, beyond: Tensor, number: Tensor) -> AttachError:
    """Return the error for the first virtual token `beyond` its row's prompt."""
    row, column = (int(index) for index in beyond.nonzero()[0])
    prefix = attachment.rows.expand(number.shape[0])[row]
    prompt = None if prefix is None else attachment.prefixes[prefix].embeddings
    if prompt is None:
        return AttachError(
            f"row {row} has virtual tokens, but no prefix that is inserted among the embeddings; "
            "make its inputs with base.inputs(texts, prefixes)"
        )
    return AttachError(f"row {row} has virtual token {int(number[row, column])}, but its prefix has {len(prompt)}")


def require_virtual(model: Any, ids: Tensor | None, attachment: Attachment) -> None:
    """Raise `AttachError` if a row with an inserted prompt has no virtual tokens. The prompt would have no effect."""
    tables = tables_of(model)
    if not tables:
        raise AttachError("this model's input embeddings are no plain table; a prompt can't be inserted among them")
    if ids is None:
        return
    size = int(tables[0].num_embeddings)
    for row, number in enumerate(attachment.rows.expand(ids.shape[0])):
        inserted = number is not None and attachment.prefixes[number].embeddings is not None
        if inserted and not bool((ids[row] >= size).any()):
            raise AttachError(
                f"row {row} has a prefix that is inserted among the embeddings, but no virtual tokens; "
                "make its inputs with base.inputs(texts, prefix), or call base.generate"
            )


def tables_of(model: Any) -> list[Any]:
    """Return the modules that look input embeddings up: the table, and others that share its weights (BART)."""
    table = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        return []
    return [module for module in model.modules() if isinstance(module, nn.Embedding) and module.weight is table.weight]
