"""Keys and values of a slot as two factors of rank r.

    P = [h_1 … h_H] `[m, H · d]` ≈ left `[m, r]` · right `[r, H · d]`

the truncated singular value decomposition, which is the best rank-r approximation in the Frobenius norm (Eckart &
Young 1936). Rows are virtual tokens: a token's keys of all heads stand side by side, so that one factor of m · r
numbers serves every head. Keys and values are taken apart from each other: their scales differ, and the smaller ones
would get no share of a common rank. √σ goes into each factor, which keeps both far from float16's limits.
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
    """Trained: left `[m, r]` and right `[r, heads · width]`. A rank above the tensor's own is cut to it."""

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
    """Two factors where they hold fewer numbers than the tensor, else the tensor as it is."""
    heads, length, width = tensor.shape
    return Svd(rank) if rank * (length + heads * width) < tensor.numel() and rank < length else PLAIN
