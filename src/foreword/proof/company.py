"""A check of its own: what attention computes is nothing but attention over keys and values.

A whole row runs through the plain model, and its keys and values are captured. Then each attention module alone is
called again with a part of its tokens, with the keys and values of the rest attached as a prefix. Its output must be
the same. A module that reads its tokens in a further way (a bias made of the values, two attentions in one) fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from foreword import attach
from foreword.prefix import KV, Prefix
from foreword.proof.checks import TOLERANCE, CheckFailed, Checks
from foreword.proof.nature import distance

WHOLE, TARGETS = 7, 9  # tokens of a row, and of an encoder–decoder's target: widths that nothing else has
APART = 3  # of them attached as a prefix


@torch.no_grad()
def in_company(checks: Checks) -> None:
    """Raise `CheckFailed` unless every attention module's output is that of attention alone."""
    model, slots = checks.trial.model, checks.slots
    tables = [part for path, part in model.named_parameters() if "relative_attention_bias" in path]
    kept = [table.clone() for table in tables]
    try:
        for table in tables:
            table.zero_()  # a prefix has no bias; tokens of the row have
        batch = checks.trial.batch([WHOLE], targets=TARGETS)
        captured = attach.capture(model, slots, **batch)
        calls = _record(checks, batch)
        for slot in slots.slots:
            for path in (path for path, names in slots.readers.items() if slot.name in names):
                _compare(checks, slot.name, path, captured[slot.name], calls[path])
    finally:
        for table, values in zip(tables, kept, strict=True):
            table.copy_(values)


def _record(checks: Checks, batch: dict[str, Tensor]) -> dict[str, tuple[Any, Any, Any]]:
    """Run the plain model; return module path → (args, kwargs, output) of its call."""
    given: dict[str, tuple[Any, Any]] = {}
    calls: dict[str, tuple[Any, Any, Any]] = {}

    def before(path: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            given[path] = _copied(args), _copied(kwargs)  # a layer may add to its tensors in place

        return hook

    def after(path: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            calls[path] = (*given[path], _copied(output))

        return hook

    hooks = []
    for path in checks.slots.readers:
        module = checks.trial.model.get_submodule(path)
        hooks.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
        hooks.append(module.register_forward_hook(after(path), with_kwargs=True))
    try:
        checks.trial.run(batch, checks.stack)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _compare(checks: Checks, slot: str, path: str, kv: KV, call: tuple[Any, Any, Any]) -> None:
    args, kwargs, output = call
    keys, cross = kv.key.shape[2], slot.startswith("cross")
    if checks.architecture.kind == "encoder" or cross or slot.startswith("encoder"):
        # all see all: the prefix is made of the last tokens, so that the others keep their places
        prefix, rest = slice(keys - APART, None), slice(0, keys - APART)
    else:
        prefix, rest = slice(0, APART), slice(APART, None)
    front = Prefix({slot: KV(*(part[0][:, prefix] for part in kv))}, 0, checks.prefixes[0].base)
    module = checks.trial.model.get_submodule(path)
    with checks.attached([front]):
        found = module(*_cut(args, keys, rest), **_cut(kwargs, keys, rest))
    actual, expected = (value[0] if isinstance(value, tuple) else value for value in (found, output))
    if not (apart := distance(actual, expected if cross else expected[:, rest])) <= TOLERANCE:
        raise CheckFailed(
            f"{type(module).__name__} at {path} computes more than attention over its keys and values: with some of "
            f"its tokens attached as a prefix its output differs by {apart:.1e}, {TOLERANCE:.0e} allowed"
        )


def _copied(value: Any) -> Any:
    """Return `value` with its tensors copied, and without caches."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Cache):
        return None
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    return type(value)(_copied(part) for part in value) if type(value) in (tuple, list) else value


def _cut(value: Any, size: int, rest: slice) -> Any:
    """Return `value` with every dimension of `size` in its tensors cut to `rest`."""
    if isinstance(value, Tensor):
        for dim in range(value.dim()):
            if value.shape[dim] == size:
                value = value[(slice(None),) * dim + (rest,)]
        return value
    if isinstance(value, dict):
        return {name: _cut(part, size, rest) for name, part in value.items()}
    return type(value)(_cut(part, size, rest) for part in value) if type(value) in (tuple, list) else value
