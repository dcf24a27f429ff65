"""Which of the measured choices to keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from foreword.compression.forms import Compressed
from foreword.errors import CompressionError


@dataclass(frozen=True)
class MeasuredChoice:
    """A choice, what came of it and what it costs.

    choice: its name. compressed: the smaller prefix. tokens: virtual tokens of its longest slot. num_bytes: of the
    saved folder, manifest included. loss: on the validation rows, nats per target token. bleu: there, or None if it
    wasn't measured. recovered: recovery steps that went into it; 0 also where they made it no better.
    note: what went wrong with its recovery, or None.
    """

    choice: str
    compressed: Compressed
    tokens: int
    num_bytes: int
    loss: float
    bleu: float | None
    recovered: int = 0
    note: str | None = None


def smallest_within(rows: Sequence[MeasuredChoice], share: float) -> MeasuredChoice:
    """The smallest of `rows[1:]` whose loss is at most `share` above that of `rows[0]`, the uncompressed one.

    One that isn't smaller than `rows[0]` doesn't count. Raises `CompressionError` that names the nearest.
    """
    whole, smaller = rows[0], [row for row in rows[1:] if row.num_bytes < rows[0].num_bytes]
    limit = whole.loss * (1 + share)
    if fitting := [row for row in smaller if row.loss <= limit]:
        return min(fitting, key=lambda row: (row.num_bytes, row.loss))
    if not smaller:
        raise CompressionError("none of the choices is smaller than the uncompressed prefix")
    nearest = min(smaller, key=lambda row: row.loss)
    raise CompressionError(
        f"none of the choices keeps the loss within {share:.2%} of {whole.loss:.4f}; the nearest is {nearest.choice} "
        f"with {nearest.loss:.4f}, {nearest.loss / whole.loss - 1:+.2%}; allow more, or try recovery training"
    )


def best_under(rows: Sequence[MeasuredChoice], max_kb: float) -> MeasuredChoice:
    """The lowest loss among the rows of at most `max_kb` KB of 1,000 bytes, the uncompressed one included.

    Raises `CompressionError` that names the smallest.
    """
    if fitting := [row for row in rows if row.num_bytes <= max_kb * 1000 and math.isfinite(row.loss)]:
        return min(fitting, key=lambda row: (row.loss, row.num_bytes))
    smallest = min(rows, key=lambda row: row.num_bytes)
    raise CompressionError(
        f"none of the choices takes {max_kb:g} KB or less; the smallest is {smallest.choice} with "
        f"{smallest.num_bytes / 1000:.1f} KB; allow more, or name smaller choices"
    )
