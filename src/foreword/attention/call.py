"""`AttentionCall`: what a model asks of one attention layer, normalised for the backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreword.errors import AttentionArgumentError

NEG_INF = float("-inf")

# Arguments that change what attention computes and that no backend here honours.
_REFUSED = {
    "head_mask": "a head mask",
    "cache": "a paged cache",
    "indices": "sparse attention indices",
    "block_indices": "sparse attention indices",
    "cu_seq_lens_q": "variable-length packing",
    "cu_seq_lens_k": "variable-length packing",
}


class MaskCache:
    """Keeps the additive masks of the last four calls.

    All layers share one mask and one bias, so the two are combined once and not once per layer.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], tuple[Any, Tensor, Tensor | None]] = {}
        self._made: dict[Any, tuple[Tensor, ...]] = {}

    def additive(
        self, mask: Tensor | None, bias: Tensor | None, query: Tensor, length: int, causal: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return (additive mask `[B, 1 or H, n, length]`, hidden queries `[B, 1 or H, n]`).

        Both are None without mask and bias. Hidden queries see no key; None if there are none.
        mask: boolean (True: visible) or additive. bias: a position bias `[1 or B, H, n, ≥ length]`, added.
        causal: with a bias and no mask, add the causal triangle.
        """
        if mask is None and bias is None:
            return None, None
        if torch.compiler.is_compiling():  # the compiler itself removes equal computations
            return _additive(mask, bias, query, length, causal)
        key = (_identity(mask), _identity(bias), query.dtype, query.shape[0], length, causal)
        known = self._known.get(key)
        if known is None:
            total, hidden = _additive(mask, bias, query, length, causal)
            # only on CPU: reading `hidden` back from a GPU costs more time than it may save
            all_see_keys = hidden is not None and hidden.device.type == "cpu" and not bool(hidden.any())
            # the entry keeps mask and bias alive, so that no new tensor gets their ids
            known = (mask, bias), total, None if all_see_keys else hidden
            # replaced as a whole, because two threads may use one attachment
            self._known = dict(list(self._known.items())[-3:]) | {key: known}
        return known[1:]

    def kept(self, key: Any, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Return what `make` returned for `key` since the last `clear`; it is called if that was never."""
        found = self._made.get(key)
        if found is None:
            found = make()
            self._made = self._made | {key: found}
        return found

    def clear(self) -> None:
        self._known, self._made = {}, {}


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """query `[B, H, n, d_k]`, key `[B, H_kv, t, d_k]`, value `[B, H_kv, t, d_v]`, all of one dtype.

    mask: None, or additive (0 or −∞, or a finite bias) of the query's dtype, `[B, 1 or H, n, t]`. It
    covers the keys of the tokens only; what the keys of a prefix get is `Shared.bias`.
    sinks: `[H]`, for each head the logit of one more key, whose value is zero (gpt-oss); or None.
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
    sinks: Tensor | None = None

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
    if causal and t > n:  # an empty static cache: keys from n on are not written yet
        key, value = key[:, :, :n], value[:, :, :n]
    bias, sinks = others.get("position_bias"), others.get("s_aux")
    additive, hidden = masks.additive(mask, bias, query, key.shape[2], causal)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    causal = causal and bias is None
    return AttentionCall(query, key, value, additive, hidden, causal, scale, softcap, dropout, sinks)


def refuse_attentions(arguments: dict[str, Any], config: Any = None) -> None:
    """Raise `AttentionArgumentError` if `arguments` or `config` ask for attention weights; no kernel returns them."""
    requested = arguments.get("output_attentions")
    if requested or (requested is None and getattr(config, "output_attentions", False)):
        raise AttentionArgumentError("output_attentions=True is not available while a prefix is attached; leave it out")


def causal_mask(n: int, like: Tensor) -> Tensor:
    """Return the additive causal mask `[n, n]`: 0 on and below the diagonal, −∞ above it."""
    return torch.full((n, n), NEG_INF, dtype=like.dtype, device=like.device).triu(1)


def _identity(tensor: Tensor | None) -> tuple[int, int] | None:
    """Return the id and the version of `tensor`. Inference tensors have no version; 0 stands for it."""
    return None if tensor is None else (id(tensor), 0 if tensor.is_inference() else tensor._version)


def _additive(
    mask: Tensor | None, bias: Tensor | None, query: Tensor, length: int, causal: bool
) -> tuple[Tensor, Tensor | None]:
    additive = None if mask is None else _to_additive(mask[..., :length], query.dtype)
    hidden = None if additive is None else (additive == NEG_INF).all(-1)
    return _sum(additive, bias, query, length, causal).expand(query.shape[0], -1, -1, -1), hidden


def _sum(mask: Tensor | None, bias: Tensor | None, query: Tensor, length: int, causal: bool) -> Tensor:
    if bias is None:
        return mask if mask is not None else causal_mask(length, query)
    bias = bias[..., :length].to(query.dtype)
    if mask is not None:
        return bias + mask
    return bias + causal_mask(length, query) if causal else bias


def _to_additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, NEG_INF)


def _autocast(query: Tensor) -> bool:
    return bool(torch.is_autocast_enabled(query.device.type))
