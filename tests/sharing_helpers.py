"""Prefixes laid out for one attention call, from lists of rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from foreword.attention.sharing import RowMap, Shared, laid_out
from foreword.prefix import KV

CPU = torch.device("cpu")


def shared_of(
    rows: Sequence[Sequence[int] | None], kvs: Sequence[KV], batch: int, tokens: int = 1, device: torch.device = CPU
) -> Shared:
    """rows: of each prefix, None for every row of the batch; kvs: its keys and values; tokens: queries of each row."""
    assignment: list[int | None] = [None] * batch
    for prefix, places in enumerate(rows):
        for row in range(batch) if places is None else places:
            assignment[row] = prefix
    lengths = tuple(kv.length for kv in kvs)
    plan = RowMap(assignment).plan(tuple(range(len(kvs))), lengths, batch, tokens, device)
    return Shared(plan, *laid_out([kv.key for kv in kvs], [kv.value for kv in kvs]))
