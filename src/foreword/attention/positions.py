"""Positions: real tokens move up by their prefix's offset, in one place, before the decoder stack runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foreword.errors import PositionError


def shifted_positions(arguments: dict[str, Any], offsets: Tensor) -> Tensor:
    """`position_ids` `[B or 1, n]` for a decoder stack's keyword `arguments`, plus `offsets` `[B or 1, 1]`.

    Where the caller gives no position_ids they are counted from the 2-D attention mask, so padding
    on either side takes no positions, and else run on from the cache's length.
    """
    given = arguments.get("position_ids")
    positions = _default(arguments) if given is None else given
    return positions + offsets


def check_limit(arguments: dict[str, Any], shifted: Tensor | None, limit: int, bound: int, offset: int) -> None:
    """Raise `PositionError` if a position is at or beyond `limit`.

    shifted: positions with their offsets, where there are any. bound: an upper bound known without
    looking at positions (no device synchronisation below it).
    """
    if bound <= limit:
        return
    positions = shifted if shifted is not None else arguments.get("position_ids")
    highest = int((_default(arguments) if positions is None else positions).max())
    if highest >= limit:
        raise PositionError(
            f"position {highest} is needed (prefix offset {offset} included), but the model has positions 0 to {limit - 1}; "
            "shorten the input or the prefix"
        )


def tokens_of(arguments: dict[str, Any]) -> Tensor | None:
    """The stack's input, `input_ids [B, n]` or `inputs_embeds [B, n, hidden]`; None for pictures and sound."""
    ids: Tensor | None = arguments.get("input_ids")
    return arguments.get("inputs_embeds") if ids is None else ids


def past_length(arguments: dict[str, Any]) -> int:
    cache = arguments.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())


def _default(arguments: dict[str, Any]) -> Tensor:
    tokens = tokens_of(arguments)
    if tokens is None:
        raise PositionError("positions can't be counted: the call has neither input_ids nor inputs_embeds")
    n, past = tokens.shape[1], past_length(arguments)
    mask = arguments.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == past + n:
        counted = mask.long().cumsum(-1) - 1
        return counted.clamp(min=0)[:, past:].to(tokens.device)
    return torch.arange(past, past + n, device=tokens.device).unsqueeze(0)
