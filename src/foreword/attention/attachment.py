"""`Attachment`: the prefixes of one `attach`, ready for attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from foreword.attention import backends
from foreword.attention.additions import add, reference_add
from foreword.attention.call import AttentionCall, MaskCache
from foreword.attention.merge import two_part_attention
from foreword.attention.reference import reference_attention
from foreword.attention.rows import RowMap
from foreword.errors import AttachError
from foreword.merges import Addition
from foreword.prefix import EMBEDDINGS, KV, Prefix

BACKENDS = ("auto", "math", "reference")


class Attachment:
    """Tensors on the model's device (a layer elsewhere gets its own copy), row map, offsets.

    backend: "auto" (flash where it fits, else math), "math", or "reference".
    """

    def __init__(self, rows: Sequence[Prefix | None], parameter: Tensor, backend: str = "auto") -> None:
        if backend not in BACKENDS:
            raise AttachError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
        distinct = list({id(row): row for row in rows if row is not None}.values())
        if any(prefix.merge == "conditioned" for prefix in distinct):
            raise AttachError(
                "a conditioned prefix differs from row to row; make the rows with base.inputs(texts, prefix), or call base.generate"
            )
        number = {id(prefix): index for index, prefix in enumerate(distinct)}
        self.rows = RowMap([None if row is None else number[id(row)] for row in rows])
        device = torch.device("cpu") if parameter.device.type == "meta" else parameter.device
        self.offsets = [0 if row is None else row.position_offset for row in rows]
        self.captured: dict[str, KV] | None = None
        self.observer: Callable[[str, AttentionCall], None] | None = None
        self.masks = MaskCache()
        place = device, parameter.dtype
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

    def offset_tensor(self, batch: int, device: torch.device) -> Tensor:
        """Offsets of `batch` rows, `[batch or 1, 1]`."""
        if (batch, device) not in self._offset_tensors:
            entries = self.rows.expand(batch)
            repeats = max(1, len(entries) // len(self.offsets))
            same = len(set(self.offsets)) == 1
            values = self.offsets[:1] if same else [offset for offset in self.offsets for _ in range(repeats)]
            self._offset_tensors[batch, device] = torch.tensor(values, device=device).unsqueeze(1)
        return self._offset_tensors[batch, device]

    def run(self, slot: str, call: AttentionCall) -> Tensor:
        """Attention output `[B, H, n, d_v]` of one slot."""
        if self.captured is not None:
            self.captured[slot] = KV(call.key, call.value)
        if self.observer is not None:
            self.observer(slot, call)
        if self._backend == "reference":
            rows = self.rows.expand(call.batch)
            output = reference_attention(call, [None if row is None else self.prefixes[row].get(slot) for row in rows])
            return reference_add(output, call, [None if row is None else self.additions[row].get(slot) for row in rows])
        groups = self.rows.groups(call.batch, call.query.device)
        pairs = [(group.rows, kv) for group in groups if (kv := self.prefixes[group.prefix].get(slot)) is not None]
        flash = backends.choose(call) if self._backend == "auto" else None
        output = two_part_attention(call, pairs, flash)
        for group in groups:
            if (addition := self.additions[group.prefix].get(slot)) is not None:
                output = add(output, call, addition, group.rows)
        return output
