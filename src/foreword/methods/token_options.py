"""Options of every method: first tokens that keep their initial values, and dropout of virtual tokens."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from foreword.errors import ConfigError
from foreword.methods.base import ParameterGroup, Producer, Start
from foreword.methods.prompt import PromptProducer
from foreword.prefix import KV, Prefix
from foreword.prefix.kinds import NETWORK

LEFT = f"{NETWORK}left"  # one row per virtual token


class TokenOptions(Producer):
    """A producer with frozen tokens and dropout.

    The first `frozen` virtual tokens keep their initial values, so that an attention sink stays one (Xiao et al. 2023,
    "Efficient Streaming Language Models with Attention Sinks"). In a training step each other virtual token is left out
    with probability `dropout`, in all slots, so nothing has to be rescaled. Validation, saving and `finish` see all
    tokens.
    """

    def __init__(self, inner: Producer, start: Start, frozen: int, dropout: float) -> None:
        super().__init__()
        self.inner = inner
        self._start, self._frozen, self._dropout = start, frozen, dropout

    def forward(self) -> Prefix:
        prefix = self._with_frozen(self.inner())
        training = self._dropout and torch.is_grad_enabled()
        return _without(prefix, self._frozen, self._dropout) if training else prefix

    def finish(self) -> Prefix:
        return self._with_frozen(self.inner.finish())

    def groups(self) -> list[ParameterGroup]:
        return self.inner.groups()

    def _with_frozen(self, prefix: Prefix) -> Prefix:
        if not self._frozen:
            return prefix
        slots, extras = {}, dict(prefix.extras)
        for name, kv in prefix.slots.items():
            first = self._start.prefix.slots[name]
            slots[name] = KV(*(_joined(old, new, self._frozen) for old, new in zip(first, kv, strict=True)))
        if (left := extras.get(LEFT)) is not None:  # so that the input doesn't change them either
            extras[LEFT] = torch.cat([torch.zeros_like(left[: self._frozen]), left[self._frozen :]])
        return replace(prefix, slots=slots, extras=extras)


def with_token_options(inner: Producer, start: Start, frozen: int, dropout: float) -> Producer:
    """Return `inner` with the options, or `inner` itself without any. Raises `ConfigError` for a meaningless option."""
    if not frozen and not dropout:
        return inner
    prefix = inner()
    if frozen and not prefix.length:
        raise ConfigError("frozen_tokens", f"a prefix of merge {prefix.merge!r} has no tokens to freeze")
    if frozen >= max(prefix.length, 1):
        raise ConfigError("frozen_tokens", f"{frozen} of {prefix.length} virtual tokens would leave none to train")
    if dropout and (not prefix.slots or start.base.model_slots.route == "cache"):
        raise ConfigError("dropout", f"a virtual token can't be left out of this method's prefix on {start.base.name}")
    if isinstance(inner, PromptProducer):  # later keys depend on earlier tokens, so embeddings are frozen
        inner.frozen = frozen
        return TokenOptions(inner, start, 0, dropout) if dropout else inner
    return TokenOptions(inner, start, frozen, dropout)


def _joined(old: Tensor, new: Tensor, frozen: int) -> Tensor:
    """Join the first `frozen` tokens of `old` and the other tokens of `new`, both `[H_kv, m, d]`."""
    return torch.cat([old[:, :frozen].to(new), new[:, frozen:]], dim=1)


def _without(prefix: Prefix, frozen: int, dropout: float) -> Prefix:
    """Return `prefix` without a random choice of tokens. Frozen tokens stay, and at least one token stays."""
    kept = torch.rand(prefix.length) >= dropout
    kept[:frozen] = True
    if not kept.any():
        kept[0] = True
    slots = {}
    for name, kv in prefix.slots.items():
        index = kept[: kv.length].nonzero()[:, 0]
        slots[name] = KV(*(tensor.index_select(1, index.to(tensor.device)) for tensor in kv))
    extras = dict(prefix.extras)
    if (left := extras.get(LEFT)) is not None:
        extras[LEFT] = left[kept.to(left.device)]
    return replace(prefix, slots=slots, extras=extras)
