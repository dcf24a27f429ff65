"""Positions: before the decoder stack runs, the positions of real tokens are raised by their prefix's offset."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foreword.errors import PositionError


def shifted_positions(arguments: dict[str, Any], offsets: Tensor, keep_own: bool = False) -> Tensor:
    """Return the positions `[B or 1, n]` of a decoder stack called with `arguments`, plus `offsets` `[B or 1, 1]`.

    If the caller gives no position_ids, they are counted from the 2-D attention mask, so that padding on either side
    takes no positions. Without such a mask they continue from the cache's length.
    keep_own: if True, rows of offset 0 always continue from the cache's length and count padding, as the model itself
    does.
    """
    position_ids: Tensor | None = arguments.get("position_ids")
    if position_ids is not None:
        return position_ids + offsets
    shifted = counted(arguments) + offsets
    return torch.where(offsets > 0, shifted, running(arguments)) if keep_own else shifted


def check_limit(arguments: dict[str, Any], shifted: Tensor | None, limit: int, bound: int, offset: int) -> None:
    """Raise `PositionError` if a position is at or beyond `limit`.

    shifted: positions with their offsets, or None if they are not shifted. bound: an upper bound of the positions;
    up to `limit` they are not read, so that the device is not synchronised.
    offset: the highest prefix offset, for the message.
    """
    if bound <= limit:
        return
    positions = shifted if shifted is not None else arguments.get("position_ids")
    highest = int((counted(arguments) if positions is None else positions).max())
    if highest >= limit:
        raise PositionError(
            f"position {highest} is needed (prefix offset {offset} included), "
            f"but the model has positions 0 to {limit - 1}; shorten the input or the prefix"
        )


def tokens_of(arguments: dict[str, Any]) -> Tensor | None:
    """Return the stack's input, `input_ids [B, n]` or `inputs_embeds [B, n, hidden]`; None for pictures and sound."""
    ids: Tensor | None = arguments.get("input_ids")
    if ids is None:
        return arguments.get("inputs_embeds")
    return ids.flatten(0, -2) if ids.dim() > 2 else ids  # GPT-2's double heads give [B, choices, n]


def past_length(arguments: dict[str, Any]) -> int | Tensor:
    """Return the number of tokens in the cache. It is a tensor during the compilation of a call with a static cache."""
    cache = arguments.get("past_key_values")
    past: int | Tensor = 0 if cache is None else cache.get_seq_length()
    return past if torch.compiler.is_compiling() else int(past)


def counted(arguments: dict[str, Any]) -> Tensor:
    """Return positions counted from the 2-D mask if it covers cache and tokens; else they continue from the cache."""
    tokens = tokens_of(arguments)
    mask = arguments.get("attention_mask")
    if tokens is not None and isinstance(mask, Tensor) and mask.dim() == 2:
        n, past = tokens.shape[1], past_length(arguments)
        if isinstance(past, Tensor):
            places = past + torch.arange(n, device=mask.device)
            return (mask.long().cumsum(-1) - 1).clamp(min=0).index_select(1, places.view(-1)).to(tokens.device)
        if mask.shape[1] >= past + n:  # the mask of a static cache is longer
            return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, past : past + n].to(tokens.device)
    return running(arguments)


def running(arguments: dict[str, Any]) -> Tensor:
    """Return positions `[1, n]` that continue from the cache, padding counted."""
    tokens = tokens_of(arguments)
    if tokens is None:
        raise PositionError("positions can't be counted: the call has neither input_ids nor inputs_embeds")
    return (past_length(arguments) + torch.arange(tokens.shape[1], device=tokens.device)).unsqueeze(0)
