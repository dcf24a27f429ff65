"""Keys, or values, of a slot as two factors of rank r.

    P = [h_1 … h_H] `[m, H · d]` ≈ left `[m, r]` · right `[r, H · d]`

This is the truncated singular value decomposition, the best rank-r approximation in the Frobenius norm (Eckart & Young
1936). Rows are virtual tokens, and a row holds the keys of all heads, so that all heads share one left factor of m · r
numbers. Keys and values have separate factors: their scales differ, and a common decomposition would use its rank for
the larger ones. Each factor gets √σ, which keeps both within the range of float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.compression.forms import PLAIN, Form
from foreword.prefix.encoding import Encoded, by_token, from_tokens


@dataclass(frozen=True)
class Svd:
    """Trains left `[m, r]` and right `[r, heads · width]`. A rank larger than the tensor's is reduced to it."""

    rank: int

    def start(self, tensor: Tensor) -> list[Tensor]:
        u, s, vh = torch.linalg.svd(by_token(tensor).double(), full_matrices=False)
        root = s[: self.rank].sqrt()
        left, right = u[:, : self.rank] * root, root[:, None] * vh[: self.rank]
        return [left.to(tensor.dtype), right.to(tensor.dtype)]

    def value(self, trained: Sequence[Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        left, right = trained
        return from_tokens(left @ right, shape)

    def stored(self, trained: Sequence[Tensor], shape: torch.Size, dtype: torch.dtype) -> Encoded:
        left, right = (factor.to(dtype) for factor in trained)
        return Encoded("svd", {"left": left, "right": right})


def svd_form(rank: int, tensor: Tensor) -> Form:
    """Return the form of two factors if they hold fewer numbers than the tensor, else the plain form."""
    heads, length, width = tensor.shape
    return Svd(rank) if rank * (length + heads * width) < tensor.numel() and rank < length else PLAIN
