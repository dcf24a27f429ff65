"""A position bias on the keys of the prefixes: every backend against the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_backends import CALLS, TOLERANCE, make_call, make_prefix

from foreword.attention import backends
from foreword.attention.backends import FLASH_CPU
from foreword.attention.merge import two_part_attention
from foreword.attention.reference import reference_attention
from foreword.attention.sharing import RowMap
from sharing_helpers import shared_of
from tiny import relative

LENGTHS = (5, 3)
KERNEL = replace(FLASH_CPU, name="one that takes no masks", forward=None, backward=None)  # type: ignore[arg-type]


def biased(shared, groups, biases):
    """`shared` with the bias `[H, n, m]` of each prefix, for all of its rows."""
    pieces = iter(biases[prefix].repeat(1, len(rows or range(3)), 1) for prefix, rows in groups.items())
    return shared._replace(
        bias=tuple(torch.stack([next(pieces) for _ in range(count)]) for count, _, _ in shared.plan.segments.runs)
    )


@pytest.mark.parametrize("name", ["causal", "decoding", "padded", "bias, padded", "no groups", "sinks", "float64"])
@pytest.mark.parametrize("assignment", [[0], [0, None, 1], [1, 0, 1], [1, 1, 0]])
def test_equals_concatenation(name, assignment) -> None:
    settings = dict(CALLS[name])
    shape = {key: settings[key] for key in ("kv", "dtype") if key in settings}
    call, prefixes = make_call(**settings), [make_prefix(LENGTHS[0], **shape), make_prefix(LENGTHS[1], seed=2, **shape)]
    tokens, generator = call.query.shape[2], torch.Generator().manual_seed(6)
    biases = [2 * torch.randn(4, tokens, length, generator=generator).to(call.query) for length in LENGTHS]
    biases[1] *= 0 if assignment == [0, None, 1] else 1  # a row without an offset
    rows = RowMap(assignment)
    each = rows.expand(3)
    kvs = [None if p is None else prefixes[p] for p in each]
    expected = reference_attention(call, kvs, [None if p is None else biases[p] for p in each])
    inputs = [call.query, call.key, call.value, *prefixes[0], *prefixes[1]]
    weight = torch.randn(expected.shape, generator=generator).to(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs, allow_unused=True)
    groups = rows.groups(3)
    plain = shared_of(list(groups.values()), [prefixes[prefix] for prefix in groups], 3, tokens)
    shared = biased(plain, groups, biases)
    assert backends.choose(call) is FLASH_CPU
    for flash in (FLASH_CPU, KERNEL, None):
        output = two_part_attention(call, shared, flash)
        assert relative(output, expected) < TOLERANCE
        found = torch.autograd.grad((output * weight).sum(), inputs, allow_unused=True)
        for one, other in zip(found, wanted, strict=True):
            assert (one is None) == (other is None)
            assert one is None or other is None or relative(one, other) < TOLERANCE
        with torch.no_grad():
            assert relative(two_part_attention(call, shared, flash), expected) < TOLERANCE
    assert relative(two_part_attention(call, plain, FLASH_CPU), expected) > 100 * TOLERANCE
