"""Positions: real tokens move up by their prefix's offset, in one place, before the decoder stack runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foreword.errors import PositionError


def shifted_positions(arguments: dict[str, Any], offsets: Tensor, keep_own: bool = False) -> Tensor:
    """`position_ids` `[B or 1, n]` for a decoder stack's keyword `arguments`, plus `offsets` `[B or 1, 1]`.

    Where the caller gives no position_ids they are counted from the 2-D attention mask, so padding
    on either side takes no positions, and else run on from the cache's length. keep_own: rows of offset 0
    run on from the cache's length as the model does by itself, padding counted.
    """
    given: Tensor | None = arguments.get("position_ids")
    if given is not None:
        return given + offsets
    shifted = counted(arguments) + offsets
    return torch.where(offsets > 0, shifted, _running(arguments)) if keep_own else shifted


def check_limit(arguments: dict[str, Any], shifted: Tensor | None, limit: int, bound: int, offset: int) -> None:
    """Raise `PositionError` if a position is at or beyond `limit`.

    shifted: positions with their offsets, where there are any. bound: an upper bound known without
    looking at positions (no device synchronisation below it).
    """
    if bound <= limit:
        return
    positions = shifted if shifted is not None else arguments.get("position_ids")
    highest = int((counted(arguments) if positions is None else positions).max())
    if highest >= limit:
        raise PositionError(
            f"position {highest} is needed (prefix offset {offset} included), but the model has positions 0 to {limit - 1}; "
            "shorten the input or the prefix"
        )


def tokens_of(arguments: dict[str, Any]) -> Tensor | None:
    """The stack's input, `input_ids [B, n]` or `inputs_embeds [B, n, hidden]`; None for pictures and sound."""
    ids: Tensor | None = arguments.get("input_ids")
    if ids is None:
        return arguments.get("inputs_embeds")
    return ids.flatten(0, -2) if ids.dim() > 2 else ids  # GPT-2's double heads give [B, choices, n]


def past_length(arguments: dict[str, Any]) -> int | Tensor:
    """Tokens in the cache; of a static one a tensor while it is compiled, whose value isn't known then."""
    cache = arguments.get("past_key_values")
    past: int | Tensor = 0 if cache is None else cache.get_seq_length()
    return past if torch.compiler.is_compiling() else int(past)


def counted(arguments: dict[str, Any]) -> Tensor:
    """Positions counted from the mask where it covers cache and tokens, else running on from the cache."""
    tokens = tokens_of(arguments)
    mask = arguments.get("attention_mask")
    if tokens is not None and isinstance(mask, Tensor) and mask.dim() == 2:
        n, past = tokens.shape[1], past_length(arguments)
        if isinstance(past, Tensor):
            places = past + torch.arange(n, device=mask.device)
            return (mask.long().cumsum(-1) - 1).clamp(min=0).index_select(1, places.view(-1)).to(tokens.device)
        if mask.shape[1] >= past + n:  # longer for a static cache
            return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, past : past + n].to(tokens.device)
    return _running(arguments)


def _running(arguments: dict[str, Any]) -> Tensor:
    tokens = tokens_of(arguments)
    if tokens is None:
        raise PositionError("positions can't be counted: the call has neither input_ids nor inputs_embeds")
    return (past_length(arguments) + torch.arange(tokens.shape[1], device=tokens.device)).unsqueeze(0)
