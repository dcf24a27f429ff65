"""T5's relative position bias for the keys of a prefix.

In a decoder, a prefix with position offset o > 0 stands before the tokens as text would: its key j at position j, and
the decoder's token i at o + i. The bias of their distance is then added to their score. A prefix with offset 0 has no
place among the positions, and no bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Relative:
    """The bias in one call. module: the attention module with the table. past: tokens cached before the call's."""

    module: Any
    tokens: int
    past: int | Tensor

    @property
    def keeps(self) -> bool:
        """True if the layers of a pass can share what is computed once."""
        return not torch.compiler.is_compiling() and not self.module.relative_attention_bias.weight.requires_grad

    def bias(self, length: int, offset: int, like: Tensor) -> Tensor:
        """Return `[H, tokens, length]`, in the dtype and on the device of `like`; 0 everywhere for offset 0."""
        table = self.module.relative_attention_bias
        if not offset:
            return like.new_zeros(table.embedding_dim, self.tokens, length)
        device = table.weight.device
        queries = torch.arange(self.tokens, device=device) + self.past + offset
        distances = torch.arange(length, device=device)[None] - queries[:, None]
        buckets = self.module._relative_position_bucket(
            distances,
            bidirectional=False,
            num_buckets=self.module.relative_attention_num_buckets,
            max_distance=self.module.relative_attention_max_distance,
        )
        return table(buckets).permute(2, 0, 1).to(like)  # type: ignore[no-any-return]
