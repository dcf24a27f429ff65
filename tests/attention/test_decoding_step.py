"""A decoding step on CPU equals the reference, and generation takes that path."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import foreword
from foreword.attention import backends, decoding
from foreword.attention.call import AttentionCall
from foreword.attention.merge import two_part_attention
from foreword.attention.reference import reference_attention
from foreword.prefix import KV
from sharing_helpers import shared_of
from tiny import relative, tiny_base

CPU = torch.device("cpu")
PREFIXES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5)), min_size=1, max_size=5)  # rows, virtual tokens


def case(prefixes, shared, groups, padding, dtype=torch.float32, value_width=8):
    """One query per row, the first `padding[row]` of its seven keys hidden, and each prefix's keys and values."""
    generator = torch.Generator().manual_seed(len(prefixes) + 10 * shared)

    def draw(*shape):
        return (2 * torch.randn(*shape, generator=generator)).to(dtype)

    rows = sum(count for count, _ in prefixes)
    mask = torch.zeros(rows, 1, 1, 7, dtype=dtype)
    for row, hidden in enumerate(padding[:rows]):
        mask[row, ..., :hidden] = float("-inf")
    query = draw(rows, 1, shared * groups, 8).transpose(1, 2)
    call = AttentionCall(query, draw(rows, shared, 7, 8), draw(rows, shared, 7, value_width), mask, None, False, 0.4)
    return call, [KV(draw(shared, length, 8), draw(shared, length, value_width)) for _, length in prefixes]


def check(prefixes, call, kvs, tolerance):
    rows = sum(count for count, _ in prefixes)
    order = iter(range(rows))
    places = [[next(order) for _ in range(count)] for count, _ in prefixes]
    expected = reference_attention(
        call, [kv for (count, _), kv in zip(prefixes, kvs, strict=True) for _ in range(count)]
    )
    before = call.query.clone()
    with torch.no_grad():
        shared = shared_of(places, kvs, rows)
        assert decoding.fits(call, backends.FLASH_CPU, shared.plan)
        output = two_part_attention(call, shared, backends.FLASH_CPU)
    assert output.shape == expected.shape
    assert relative(output, expected) < tolerance
    assert torch.equal(call.query, before)


@settings(deadline=None)
@given(PREFIXES, st.integers(1, 3), st.integers(1, 3), st.lists(st.integers(0, 6), min_size=15, max_size=15))
def test_a_step_equals_the_reference(prefixes, shared, groups, padding) -> None:
    call, kvs = case(prefixes, shared, groups, padding)
    check(prefixes, call, kvs, 1e-5)


@pytest.mark.parametrize(
    ("dtype", "value_width", "tolerance"),
    [(torch.float64, 8, 1e-6), (torch.float32, 4, 1e-5), (torch.bfloat16, 8, 2e-2), (torch.float16, 8, 5e-3)],
)
def test_types_and_widths(dtype, value_width, tolerance) -> None:
    prefixes = [(2, 5), (2, 5), (1, 3)]
    call, kvs = case(prefixes, 2, 2, [0, 3, 6, 0, 1], dtype, value_width)
    check(prefixes, call, kvs, tolerance)


def test_a_row_that_sees_only_its_prefix() -> None:
    call, kvs = case([(2, 4)], 2, 2, [7, 0])
    shown = replace(call, hidden=torch.tensor([True, False]).view(2, 1, 1))
    check([(2, 4)], shown, kvs, 1e-5)
    with torch.no_grad():
        shared = shared_of([None], kvs, 2)
        first, second = (two_part_attention(given, shared, backends.FLASH_CPU) for given in (call, shown))
    assert relative(first, second) > 0.1, "saying that the query is hidden made no difference"


def test_generation_takes_this_path(monkeypatch) -> None:
    base, seen = tiny_base("llama"), []
    prefixes = [foreword.Prefix.from_text(text, base, length=4) for text in ("a b c d e", "f g h i j")]
    attend = decoding.attend

    def watched(*given):
        seen.append(given[1].queries)
        return attend(*given)

    monkeypatch.setattr(decoding, "attend", watched)
    rows = [prefixes[0], prefixes[1], prefixes[0]]
    found = base.generate(["x y", "z", "w x y z"], prefix=rows, min_new_tokens=5, max_new_tokens=5)
    assert set(seen) == {(2, 1)} or set(seen) == {(1, 2)}
    assert len(seen) == 4 * len(base.slots)  # the first new token is the prompt's
    monkeypatch.setattr(decoding, "fits", lambda *_: False)
    assert base.generate(["x y", "z", "w x y z"], prefix=rows, min_new_tokens=5, max_new_tokens=5) == found
