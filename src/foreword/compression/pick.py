"""Pick one of the measured choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from foreword.compression.forms import Compressed
from foreword.errors import CompressionError


@dataclass(frozen=True)
class MeasuredChoice:
    """A choice with its result.

    choice: its name. compressed: the smaller prefix. tokens: virtual tokens of its longest slot. num_bytes: of the
    saved folder, manifest included. loss: on the validation rows, nats per target token. bleu: on the same rows, or
    None if it wasn't measured. recovered: number of recovery steps; 0 also if recovery did not lower the loss.
    note: the error that stopped its recovery, or None.
    """

    choice: str
    compressed: Compressed = field(repr=False)
    tokens: int
    num_bytes: int
    loss: float
    bleu: float | None
    recovered: int = 0
    note: str | None = None


def smallest_within(rows: Sequence[MeasuredChoice], share: float) -> MeasuredChoice:
    """Return the smallest of `rows[1:]` whose loss is at most `share` above that of `rows[0]`, the uncompressed one.

    Rows that aren't smaller than `rows[0]` don't count. Raises `CompressionError`, which names the nearest row.
    """
    uncompressed, smaller = rows[0], [row for row in rows[1:] if row.num_bytes < rows[0].num_bytes]
    limit = uncompressed.loss * (1 + share)
    if fitting := [row for row in smaller if row.loss <= limit]:
        return min(fitting, key=lambda row: (row.num_bytes, row.loss))
    if not smaller:
        raise CompressionError("none of the choices is smaller than the uncompressed prefix")
    nearest = min(smaller, key=lambda row: row.loss)
    raise CompressionError(
        f"none of the choices keeps the loss within {share:.2%} of {uncompressed.loss:.4f}; "
        f"the nearest is {nearest.choice} with {nearest.loss:.4f}, {nearest.loss / uncompressed.loss - 1:+.2%}; "
        "allow more, or try recovery training"
    )


def best_under(rows: Sequence[MeasuredChoice], max_kb: float) -> MeasuredChoice:
    """Return the row with the lowest loss of at most `max_kb` KB of 1,000 bytes, the uncompressed one included.

    Raises `CompressionError`, which names the smallest row.
    """
    if fitting := [row for row in rows if row.num_bytes <= max_kb * 1000 and math.isfinite(row.loss)]:
        return min(fitting, key=lambda row: (row.loss, row.num_bytes))
    smallest = min(rows, key=lambda row: row.num_bytes)
    raise CompressionError(
        f"none of the choices takes {max_kb:g} KB or less; the smallest is {smallest.choice} with "
        f"{smallest.num_bytes / 1000:.1f} KB; allow more, or name smaller choices"
    )
