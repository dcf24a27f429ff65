"""`Attachment`: the prefixes of one `attach`, ready for attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from foreword.attention import backends
from foreword.attention.additions import add, reference_add
from foreword.attention.call import AttentionCall, MaskCache
from foreword.attention.joined import Joined, Uses, join, uses_of
from foreword.attention.merge import two_part_attention
from foreword.attention.reference import reference_attention
from foreword.attention.rows import RowMap
from foreword.attention.segments import Segments
from foreword.errors import AttachError
from foreword.merges import Addition
from foreword.placing import placed
from foreword.prefix import EMBEDDINGS, KV, Prefix

BACKENDS = ("auto", "math", "reference")


class Attachment:
    """Tensors on the model's device (a layer elsewhere gets its own copy), row map, offsets.

    backend: "auto" (flash where it fits, else math), "math", or "reference". packed: the batch is one row of tokens, in
    which the rows lie one behind another, of so many tokens each.
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
        if any(prefix.merge == "conditioned" for prefix in distinct):
            raise AttachError(
                "a conditioned prefix differs from row to row; make the rows with base.inputs(texts, prefix), or call base.generate"
            )
        number = {id(prefix): index for index, prefix in enumerate(distinct)}
        assignment = [None if row is None else number[id(row)] for row in rows]
        self.packed = None if packed is None else Segments(tuple(packed), tuple(packed))
        self.offsets = [0 if row is None else row.position_offset for row in rows]
        self.rows = RowMap(assignment, [prefix.length for prefix in distinct])
        self._tokens = self.rows if packed is None else _by_token(self.rows, packed)
        self.captured: dict[str, KV] | None = None
        self.observer: Callable[[str, AttentionCall], None] | None = None
        self.masks = MaskCache()
        device = torch.device("cpu") if parameter.device.type == "meta" else parameter.device
        self._parameter, place = parameter, (device, parameter.dtype)
        self.prefixes: list[dict[str, KV]] = [
            {}
            if prefix.additions
            else {name: KV(*(part.to(*place) for part in kv)) for name, kv in prefix.slots.items()}
            for prefix in distinct
        ]
        self.additions: list[dict[str, Addition]] = [
            {name: type(added)(*(part.to(*place) for part in added)) for name, added in prefix.additions.items()}
            for prefix in distinct
        ]
        self.embeddings = [
            prefix.extras[EMBEDDINGS].to(*place) if prefix.merge == "embedding" else None for prefix in distinct
        ]
        self.has_embeddings = any(prompt is not None for prompt in self.embeddings)
        self._backend = backend
        self._offset_tensors: dict[tuple[int, torch.device], Tensor] = {}
        self._uses: dict[tuple[str, int, torch.device], tuple[Uses, tuple[int, ...]] | None] = {}
        self._shared: dict[tuple[tuple[int, ...], int, torch.device], Uses] = {}
        self._joined: dict[tuple[str, tuple[int, ...]], Joined] = {}

    def with_rows(self, rows: Sequence[Prefix | None]) -> Attachment:
        """The same attachment with other prefixes, ready for the batches that this one has seen."""
        other = Attachment(rows, self._parameter, self._backend)
        other.captured, other.observer = self.captured, self.observer
        if len(self.rows.assignment) == len(other.rows.assignment):
            for slot, batch, device in self._uses:
                other._joined_for(slot, batch, device)
            for batch, device in self._offset_tensors:
                other.offset_tensor(batch, device)
        return other

    def offset_tensor(self, batch: int, device: torch.device) -> Tensor:
        """Offsets of `batch` rows, `[batch or 1, 1]`."""
        if (batch, device) not in self._offset_tensors:
            entries = self.rows.expand(batch)
            repeats = max(1, len(entries) // len(self.offsets))
            same = len(set(self.offsets)) == 1
            values = self.offsets[:1] if same else [offset for offset in self.offsets for _ in range(repeats)]
            self._offset_tensors[batch, device] = placed(values, device).unsqueeze(1)
        return self._offset_tensors[batch, device]

    def packed_positions(self, given: Tensor | None, device: torch.device) -> Tensor:
        """Positions of packed rows, `[1, Σ tokens]`: from each row's offset on. given: positions without offsets."""
        lengths = () if self.packed is None else self.packed.queries
        offsets = self.offsets * (len(lengths) if len(self.offsets) == 1 else 1)
        if given is None:
            starts = [offset - first for offset, first in zip(offsets, accumulate(lengths, initial=0), strict=False)]
            given, offsets = torch.arange(sum(lengths), device=device).unsqueeze(0), starts
        counts = placed(lengths, device)
        return given + placed(offsets, device).repeat_interleave(counts, output_size=sum(lengths))

    def run(self, slot: str, call: AttentionCall) -> Tensor:
        """Attention output `[B, H, n, d_v]` of one slot."""
        if self.captured is not None:
            self.captured[slot] = KV(call.key, call.value)
        if self.observer is not None:
            self.observer(slot, call)
        if self._backend == "reference":
            return self._reference(slot, call)
        flash = backends.choose(call) if self._backend == "auto" else None
        count = call.batch if self.packed is None else call.query.shape[2]
        output = two_part_attention(call, self._joined_for(slot, count, call.query.device), flash, self.packed)
        return self._add(slot, call, output, count) if any(self.additions) else output

    def _joined_for(self, slot: str, rows: int, device: torch.device) -> Joined | None:
        """The prefixes of `slot` for a batch of `rows` rows. Joined once, but for those that learn: they change."""
        if (slot, rows, device) not in self._uses:
            self._uses[slot, rows, device] = self._uses_of(slot, rows, device)
        found = self._uses[slot, rows, device]
        if found is None:
            return None
        uses, numbers = found
        if (slot, numbers) in self._joined:
            return self._joined[slot, numbers]._replace(uses=uses)
        kvs = [self.prefixes[number][slot] for number in numbers]
        learns = any(key.requires_grad or value.requires_grad for key, value in kvs)
        if len(kvs) == 1 or (learns and torch.is_grad_enabled()):
            joined = join(uses, kvs)
        else:
            with torch.inference_mode(False), torch.no_grad():  # so that they may stand beside gradients later
                joined = join(uses, kvs)
        if not learns:
            self._joined[slot, numbers] = joined
        return joined

    def _uses_of(self, slot: str, rows: int, device: torch.device) -> tuple[Uses, tuple[int, ...]] | None:
        """Which rows use which prefixes of `slot`, and the prefixes' numbers."""
        groups = [
            group for group in self._tokens.groups(rows, device)
            if (kv := self.prefixes[group.prefix].get(slot)) is not None and kv.key.shape[1]
        ]  # fmt: skip
        if not groups:
            return None
        numbers = tuple(group.prefix for group in groups)
        if (numbers, rows, device) not in self._shared:  # slots share the order and its plans
            self._shared[numbers, rows, device] = uses_of([group.places for group in groups], rows, device)
        uses = self._shared[numbers, rows, device]
        # a decoding step's plan, which a compiled one must find
        uses.plan(1, tuple(self.prefixes[number][slot].key.shape[1] for number in numbers))
        return uses, numbers

    def _add(self, slot: str, call: AttentionCall, output: Tensor, rows: int) -> Tensor:
        """What gated and memory prefixes add. Packed tokens are rows of one token each."""
        if self.packed is not None:
            call, output = replace(call, query=call.query.transpose(0, 2)), output.transpose(0, 2)
        for group in self._tokens.groups(rows, call.query.device):
            if (addition := self.additions[group.prefix].get(slot)) is not None:
                output = add(output, call, addition, group.rows)
        return output if self.packed is None else output.transpose(0, 2)

    def _reference(self, slot: str, call: AttentionCall) -> Tensor:
        if self.packed is not None:
            return self._reference_packed(slot, call)
        rows = self.rows.expand(call.batch)
        output = reference_attention(call, [None if row is None else self.prefixes[row].get(slot) for row in rows])
        return reference_add(output, call, [None if row is None else self.additions[row].get(slot) for row in rows])

    def _reference_packed(self, slot: str, call: AttentionCall) -> Tensor:
        """One packed row at a time."""
        lengths = () if self.packed is None else self.packed.queries
        pieces = [torch.split(part, list(lengths), 2) for part in (call.query, call.key, call.value)]
        outputs = []
        for row, query, key, value in zip(self.rows.expand(len(lengths)), *pieces, strict=True):
            own = replace(call, query=query, key=key, value=value)
            output = reference_attention(own, [None if row is None else self.prefixes[row].get(slot)])
            outputs.append(reference_add(output, own, [None if row is None else self.additions[row].get(slot)]))
        return torch.cat(outputs, 2)


def _by_token(rows: RowMap, packed: Sequence[int]) -> RowMap:
    """The same map with a row for each token."""
    if len(rows.assignment) == 1:
        return rows
    entries = rows.expand(len(packed))
    return RowMap([entry for entry, tokens in zip(entries, packed, strict=True) for _ in range(tokens)], rows.lengths)
