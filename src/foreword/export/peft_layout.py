"""How PEFT lays a prefix out: `adapter_config.json`, and one tensor, `prompt_embeddings`.

Prefix tuning and cartridges: `[m, 2 · layers · num_kv_heads · head_dim]`, for each virtual token the keys of layer 0,
its values, the keys of layer 1, …, each `[num_kv_heads, head_dim]`, keys after rotary embedding. The real tokens stand
behind, at positions from m on. Prompt tuning and P-tuning: input embeddings `[m, width]`; P-tuning's network has been
applied when they are saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foreword.prefix import KV

CONFIG, TENSORS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
NAME = "prompt_embeddings"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ENCODER_DECODER = (
    "in an encoder–decoder PEFT counts the prefix among the decoder's positions (T5: in its position bias), which a "
    "prefix of Foreword has no place in, and in one with an even number of layers it gives two layers one prefix"
)


def flattened(slots: Mapping[str, KV]) -> Tensor:
    """Return keys and values of equal shapes as PEFT's tensor, `[m, 2 · layers · num_kv_heads · head_dim]`."""
    parts = [part.detach().cpu().transpose(0, 1) for kv in slots.values() for part in kv]  # [m, H_kv, d] each
    return torch.stack(parts, dim=1).flatten(1).contiguous()


def unflattened(table: Tensor, layers: int, heads: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return (keys, values), one `[num_kv_heads, m, head_dim]` for each layer, that own their memory."""
    parts = table.view(len(table), 2 * layers, heads, -1).permute(1, 2, 0, 3)
    return [part.contiguous().clone() for part in parts[0::2]], [part.contiguous().clone() for part in parts[1::2]]


def smallest_window(config: Any) -> int | None:
    """Return how many tokens the narrowest layer of a configuration sees; None if every layer sees all."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        return getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    fields = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    windows = [getattr(text, field, None) for kind, field in fields.items() if kind in kinds]
    return min((window for window in windows if window is not None), default=None)
