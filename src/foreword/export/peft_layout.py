"""How PEFT lays a prefix out: `adapter_config.json`, and one tensor, `prompt_embeddings`.

Prefix tuning and cartridges: `[m, 2 · layers · num_kv_heads · head_dim]`, for each virtual token the keys of layer 0,
its values, the keys of layer 1, …, each `[num_kv_heads, head_dim]`, keys after rotary embedding. The real tokens stand
behind, at positions from m on.

In an encoder–decoder the prefix is the decoder's own; encoder and cross attention have none. PEFT writes the table of n
layers twice in a row and cuts it into pieces of two layers, of which it uses the first. So layer i of the decoder gets
the layer 2i mod n of the table: with n even, two layers get the same, and half the table is never used. A decoder of
fewer layers than the table is run too; the rest of the table is then not used.

Prompt tuning and P-tuning: input embeddings `[m, width]`; P-tuning's network has been
applied when they are saved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from foreword.prefix import KV

CONFIG, TENSORS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
NAME = "prompt_embeddings"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def decoder_layers(config: Any) -> int:
    """Return how many layers an encoder–decoder's decoder has."""
    layers: int | None = getattr(config, "num_decoder_layers", None)  # T5
    return int(config.decoder_layers if layers is None else layers)


def used(layers: int, told: int) -> list[int]:
    """Return the layer of a table of `told` layers that PEFT gives to each of an encoder–decoder's `layers`."""
    return [2 * layer % told for layer in range(layers)]


def for_decoder(layers: Sequence[KV]) -> list[KV]:
    """Return the layers of a table from which PEFT gives `layers` to an encoder–decoder's decoder.

    It has as many where these can hold them, which is so if the number is odd or both halves are equal; else nearly
    twice as many, of which those that PEFT doesn't use are 0.
    """
    count, half = len(layers), len(layers) // 2
    halves = zip(layers[:half], layers[half:], strict=False)
    fits = count % 2 == 1 or all(torch.equal(a, b) for pair in halves for a, b in zip(*pair, strict=True))
    told = count if fits else 2 * count - 1
    table = [KV(*(torch.zeros_like(part) for part in layers[0]))] * told
    for layer, place in zip(layers, used(count, told), strict=True):
        table[place] = layer
    return table


def flattened(layers: Iterable[KV]) -> Tensor:
    """Return keys and values of equal shapes as PEFT's tensor, `[m, 2 · layers · num_kv_heads · head_dim]`."""
    parts = [part.detach().cpu().transpose(0, 1) for kv in layers for part in kv]  # [m, H_kv, d] each
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
