"""`Attachment`: the prefixes of one `attach`, prepared for attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from foreword.attach.relative import Relative
from foreword.attention import backends
from foreword.attention.additions import add, reference_add
from foreword.attention.call import AttentionCall, MaskCache
from foreword.attention.merge import two_part_attention
from foreword.attention.reference import reference_attention
from foreword.attention.segments import Segments
from foreword.attention.sharing import Plan, RowMap, Shared, laid_out
from foreword.errors import AttachError
from foreword.placing import placed
from foreword.prefix import KV, Prefix
from foreword.prefix.kinds import Addition

BACKENDS = ("auto", "math", "reference")


class OnDevice(NamedTuple):
    """The tensors of one prefix, on the model's device and in its dtype. slots: empty for a prefix with additions."""

    slots: dict[str, KV]
    additions: dict[str, Addition]
    embeddings: Tensor | None


class Attachment:
    """Tensors on the model's device (a layer on another device gets its own copy), row map, offsets.

    rows: one prefix for all rows, or one entry per row.
    parameter: a parameter of the model; it gives device and dtype.
    backend: "auto" (flash where it fits, else math), "math", or "reference".
    packed: the number of tokens of each row, if the batch is one row of tokens in which the rows stand one after
    another; else None.
    """

    def __init__(
        self,
        rows: Sequence[Prefix | None],
        parameter: Tensor,
        backend: str = "auto",
        packed: Sequence[int] | None = None,
    ) -> None:
        if backend not in BACKENDS:
            raise AttachError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
        distinct = list({id(row): row for row in rows if row is not None}.values())
        _require_static(distinct)
        number = {id(prefix): index for index, prefix in enumerate(distinct)}
        assignment = [None if row is None else number[id(row)] for row in rows]
        self.packed = None if packed is None else Segments(tuple(packed), tuple(packed))
        self.offsets = [0 if row is None else row.position_offset for row in rows]
        self._offset_of = [prefix.position_offset for prefix in distinct]
        self.rows = RowMap(assignment, [prefix.length for prefix in distinct])
        self.prefixes = [_on_device(prefix, parameter) for prefix in distinct]
        self.has_embeddings = any(prefix.embeddings is not None for prefix in self.prefixes)
        self.captured: dict[str, KV] | None = None
        self.observer: Callable[[str, AttentionCall], None] | None = None
        self.masks = MaskCache()
        self._tokens = self.rows if packed is None else _by_token(self.rows, packed)
        self._has_additions = any(prefix.additions for prefix in self.prefixes)
        self._parameter, self._backend = parameter, backend
        self._offset_tensors: dict[tuple[int, torch.device], Tensor] = {}
        self._plans: dict[tuple[str, int, int, torch.device], tuple[Plan, tuple[int, ...]] | None] = {}
        self._laid_out: dict[tuple[str, tuple[int, ...]], tuple[Tensor, Tensor]] = {}

    def with_rows(self, rows: Sequence[Prefix | None]) -> Attachment:
        """Return an attachment of `rows` with the same settings, prepared for the batch shapes this one has seen."""
        attachment = Attachment(rows, self._parameter, self._backend)
        attachment.captured, attachment.observer = self.captured, self.observer
        if len(self.rows.assignment) == len(attachment.rows.assignment):
            for slot, batch, tokens, device in list(self._plans):  # another thread may add to them
                if tokens == 1:  # decoding continues; a prompt of the same length may not come again
                    attachment.shared(slot, batch, tokens, device)
            for batch, device in list(self._offset_tensors):
                attachment.offset_tensor(batch, device)
        return attachment

    def offset_tensor(self, batch: int, device: torch.device) -> Tensor:
        """Return the position offsets of `batch` rows, `[batch or 1, 1]`."""
        if (batch, device) not in self._offset_tensors:
            entries = self.rows.expand(batch)
            repeats = max(1, len(entries) // len(self.offsets))
            same = len(set(self.offsets)) == 1
            values = self.offsets[:1] if same else [offset for offset in self.offsets for _ in range(repeats)]
            self._offset_tensors[batch, device] = placed(values, device).unsqueeze(1)
        return self._offset_tensors[batch, device]

    def packed_positions(self, positions: Tensor | None, device: torch.device) -> Tensor:
        """Return the positions of packed rows, `[1, Σ tokens]`, offsets included.

        positions: positions without offsets, `[1, Σ tokens]`; None: each row counts from 0.
        """
        lengths = () if self.packed is None else self.packed.queries
        offsets = self.offsets * (len(lengths) if len(self.offsets) == 1 else 1)
        if positions is None:
            starts = [offset - first for offset, first in zip(offsets, accumulate(lengths, initial=0), strict=False)]
            positions, offsets = torch.arange(sum(lengths), device=device).unsqueeze(0), starts
        counts = placed(lengths, device)
        return positions + placed(offsets, device).repeat_interleave(counts, output_size=sum(lengths))

    def run(self, slot: str, call: AttentionCall, relative: Relative | None = None) -> Tensor:
        """Return the attention output `[B, H, n, d_v]` of one slot.

        relative: the relative bias of a prefix with an offset; None: there is none.
        """
        if self.captured is not None:
            self.captured[slot] = KV(call.key, call.value)
        if self.observer is not None:
            self.observer(slot, call)
        if self._backend == "reference":
            return self._reference(slot, call, relative)
        flash = backends.choose(call) if self._backend == "auto" else None
        tokens = call.query.shape[2]
        batch, row_tokens = (call.batch, tokens) if self.packed is None else (tokens, 1)  # a packed token is a row
        shared = self.shared(slot, batch, row_tokens, call.query.device)
        if relative is not None and shared is not None:
            shared = shared._replace(bias=self._bias(slot, call, relative))
        output = two_part_attention(call, shared, flash, self.packed)
        return self._add(slot, call, output, batch) if self._has_additions else output

    def shared(self, slot: str, batch: int, tokens: int, device: torch.device) -> Shared | None:
        """Return the prefixes of `slot` for `batch` rows of `tokens` queries each; None: no row has one there."""
        key = slot, batch, tokens, device
        if key not in self._plans:
            self._plans[key] = self._planned(*key)
            self._plans.setdefault((slot, batch, 1, device), self._planned(slot, batch, 1, device))
            # the plan of a decoding step is made with that of the prompt: a compiled step must not make one
        if (planned := self._plans[key]) is None:
            return None
        plan, numbers = planned
        return Shared(plan, *self._end_to_end(slot, numbers))

    def _planned(self, slot: str, batch: int, tokens: int, device: torch.device) -> tuple[Plan, tuple[int, ...]] | None:
        """Return the plan of a call and the numbers of its prefixes; None: no row has a prefix in `slot`."""
        lengths = {
            number: kv.length
            for number in self._tokens.groups(batch)
            if (kv := self.prefixes[number].slots.get(slot)) is not None and kv.length
        }
        if not lengths:
            return None
        numbers = tuple(lengths)
        return self._tokens.plan(numbers, tuple(lengths.values()), batch, tokens, device), numbers

    def _bias(self, slot: str, call: AttentionCall, relative: Relative) -> tuple[Tensor, ...] | None:
        """Return `Shared.bias` of one slot; None: no prefix in it has an offset. The layers of a pass share it."""
        batch, _, tokens, _ = call.query.shape
        planned = self._plans[slot, batch, tokens, call.query.device]
        if planned is None or not any(self._offset_of[number] for number in planned[1]):
            return None
        segments, numbers = planned[0].segments, planned[1]

        def made() -> tuple[Tensor, ...]:
            pieces = iter(
                relative.bias(length, self._offset_of[number], call.query).repeat(1, queries // tokens, 1)
                for number, length, queries in zip(numbers, segments.keys, segments.queries, strict=True)
            )
            return tuple(torch.stack([next(pieces) for _ in range(count)]) for count, _, _ in segments.runs)

        key = numbers, segments.keys, batch, tokens, relative.past, call.query.dtype, call.query.device
        return self.masks.kept(key, made) if relative.keeps else made()

    def _end_to_end(self, slot: str, numbers: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return keys and values of the prefixes `numbers`, concatenated.

        The result is kept, unless a prefix is being trained: its tensors change at every step.
        """
        if (slot, numbers) in self._laid_out:
            return self._laid_out[slot, numbers]
        keys, values = zip(*(self.prefixes[number].slots[slot] for number in numbers), strict=True)
        trained = any(tensor.requires_grad for tensor in (*keys, *values))
        if len(numbers) == 1 or (trained and torch.is_grad_enabled()):
            pair = laid_out(keys, values)
        else:
            with (
                torch.inference_mode(False),
                torch.no_grad(),
            ):  # so that a later call may use them together with gradients
                pair = laid_out(keys, values)
        if not trained:
            self._laid_out[slot, numbers] = pair
        return pair

    def _add(self, slot: str, call: AttentionCall, output: Tensor, batch: int) -> Tensor:
        """Add what gated and memory prefixes add. Each packed token counts as a row of one token."""
        if self.packed is not None:
            call, output = replace(call, query=call.query.transpose(0, 2)), output.transpose(0, 2)
        for number in self._tokens.groups(batch):
            if (addition := self.prefixes[number].additions.get(slot)) is not None:
                output = add(output, call, addition, self._tokens.index(number, batch, call.query.device))
        return output if self.packed is None else output.transpose(0, 2)

    def _reference(self, slot: str, call: AttentionCall, relative: Relative | None) -> Tensor:
        """Compute one packed row after another, or the whole batch at once."""
        if self.packed is None:
            return self._reference_rows(slot, call, self.rows.expand(call.batch), relative)
        lengths = list(self.packed.queries)
        pieces = [torch.split(tensor, lengths, 2) for tensor in (call.query, call.key, call.value)]
        outputs = [
            self._reference_rows(slot, replace(call, query=query, key=key, value=value), [row])
            for row, query, key, value in zip(self.rows.expand(len(lengths)), *pieces, strict=True)
        ]
        return torch.cat(outputs, 2)

    def _reference_rows(
        self, slot: str, call: AttentionCall, rows: list[int | None], relative: Relative | None = None
    ) -> Tensor:
        prefixes = [None if row is None else self.prefixes[row] for row in rows]
        kvs = [None if prefix is None else prefix.slots.get(slot) for prefix in prefixes]
        biases: list[Tensor | None] = [None] * len(kvs)
        if relative is not None:
            offsets = [0 if row is None else self._offset_of[row] for row in rows]
            pairs = zip(kvs, offsets, strict=True)
            biases = [None if kv is None else relative.bias(kv.length, offset, call.query) for kv, offset in pairs]
        output = reference_attention(call, kvs, biases)
        additions = [None if prefix is None else prefix.additions.get(slot) for prefix in prefixes]
        return reference_add(output, call, additions)


def _require_static(prefixes: Sequence[Prefix]) -> None:
    if any(prefix.kind.reads_input for prefix in prefixes):
        raise AttachError(
            "a conditioned prefix differs from row to row; make the rows with base.inputs(texts, prefix), "
            "or call base.generate"
        )


def _on_device(prefix: Prefix, parameter: Tensor) -> OnDevice:
    device = torch.device("cpu") if parameter.device.type == "meta" else parameter.device
    place = device, parameter.dtype
    additions = {
        name: type(added)(*(tensor.to(*place) for tensor in added)) for name, added in prefix.additions.items()
    }
    slots = {} if additions else {name: KV(*(tensor.to(*place) for tensor in kv)) for name, kv in prefix.slots.items()}
    embeddings = prefix.embeddings
    return OnDevice(slots, additions, None if embeddings is None else embeddings.to(*place))


def _by_token(rows: RowMap, packed: Sequence[int]) -> RowMap:
    """Return the same map with one row for each token."""
    if len(rows.assignment) == 1:
        return rows
    entries = rows.expand(len(packed))
    return RowMap([entry for entry, tokens in zip(entries, packed, strict=True) for _ in range(tokens)], rows.lengths)
