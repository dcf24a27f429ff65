"""`AttentionCall`: what a model asks of one attention layer, normalised for the backends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreword.errors import AttentionArgumentError

NEG_INF = float("-inf")

# Arguments that change what attention computes and that no backend here honours.
_REFUSED = {
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "a position bias",
    "head_mask": "a head mask",
    "cache": "a paged cache",
    "indices": "sparse attention indices",
    "block_indices": "sparse attention indices",
    "cu_seq_lens_q": "variable-length packing",
    "cu_seq_lens_k": "variable-length packing",
}


class MaskCache:
    """Additive masks of the last few boolean ones: layers share a mask, so it is converted once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], tuple[Tensor, Tensor, Tensor | None]] = {}

    def additive(self, mask: Tensor | None, query: Tensor, length: int) -> tuple[Tensor | None, Tensor | None]:
        """(additive mask `[B, 1 or H, n, length]`, hidden queries) for a boolean or additive `mask`."""
        if mask is None:
            return None, None
        version = 0 if mask.is_inference() else mask._version  # inference tensors keep none
        key = (id(mask), version, query.dtype, query.shape[0], length)
        if key not in self._known:
            if len(self._known) >= 4:
                del self._known[next(iter(self._known))]
            bias = _to_additive(mask[..., :length], query.dtype)
            hidden = (bias == NEG_INF).all(-1)
            bias = bias.expand(query.shape[0], *bias.shape[1:])
            # `mask` is kept so that its id can't be reused
            self._known[key] = (mask, bias, hidden if bool(hidden.any()) else None)
        return self._known[key][1:]

    def clear(self) -> None:
        self._known.clear()


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """query `[B, H, n, d_k]`, key `[B, H_kv, t, d_k]`, value `[B, H_kv, t, d_v]`, all of one dtype.

    mask: None, or additive (0 or −∞, or a finite bias) of the query's dtype, `[B, 1 or H, n, t]`.
    hidden: queries that see no key, boolean `[B, 1 or H, n]`; None if there are none.
    causal: query i sees keys 0…i; only together with mask None and n == t.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    hidden: Tensor | None
    causal: bool
    scale: float
    softcap: float | None = None
    dropout: float = 0.0

    @property
    def batch(self) -> int:
        return self.query.shape[0]


def normalise(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    is_causal: bool | None,
    softcap: float | None,
    others: dict[str, Any],
    masks: MaskCache,
) -> AttentionCall:
    """Build the call, following the conventions of Transformers' `sdpa_attention_forward`.

    Raises `AttentionArgumentError` for an argument that would have to be dropped.
    """
    for name, meaning in _REFUSED.items():
        if others.get(name) is not None:
            raise AttentionArgumentError(
                f"{type(module).__name__} passes {name!r} ({meaning}), which Foreword's attention does not support"
            )
    refuse_attentions(others)
    if mask is not None and not isinstance(mask, Tensor):
        raise AttentionArgumentError(f"an attention mask of type {type(mask).__name__} is not supported")
    dtype = torch.get_autocast_dtype(query.device.type) if _autocast(query) else value.dtype
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    n, t = query.shape[2], key.shape[2]
    wants_causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    causal = mask is None and n > 1 and wants_causal
    if causal and t > n:  # an empty static cache: the tail holds nothing yet
        key, value = key[:, :, :n], value[:, :, :n]
    additive, hidden = masks.additive(mask, query, t)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return AttentionCall(query, key, value, additive, hidden, causal, scale, softcap, dropout)


def refuse_attentions(arguments: dict[str, Any]) -> None:
    """Raise `AttentionArgumentError` if attention weights are asked for: no kernel here returns them."""
    if arguments.get("output_attentions"):
        raise AttentionArgumentError("output_attentions=True is not available while a prefix is attached; leave it out")


def causal_mask(n: int, like: Tensor) -> Tensor:
    """Additive lower-triangular mask `[n, n]`."""
    return torch.full((n, n), NEG_INF, dtype=like.dtype, device=like.device).triu(1)


def _to_additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, NEG_INF)


def _autocast(query: Tensor) -> bool:
    return bool(torch.is_autocast_enabled(query.device.type))
