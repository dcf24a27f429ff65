"""Segments equal separate calls, forward and backward, and equal neighbours are one call."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.attention.backends import FLASH_CPU
from foreword.attention.segments import Segments
from tiny import relative

SIZES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=6)


@settings(deadline=None)
@given(SIZES, st.booleans())
def test_segments_equal_separate_calls(sizes: list[tuple[int, int]], causal: bool) -> None:
    sizes = [(queries, queries) if causal else (queries, keys) for queries, keys in sizes]
    cut = Segments(tuple(size[0] for size in sizes), tuple(size[1] for size in sizes))
    total, seen = sum(cut.queries), sum(cut.keys)
    generator = torch.Generator().manual_seed(total + 100 * seen)
    # [1, H, N, d] over [1, N, H, d] memory, as models make it
    query, grad = (torch.randn(1, total, 4, 8, generator=generator).transpose(1, 2) for _ in range(2))
    key, value = (torch.randn(1, 2, seen, 8, generator=generator) for _ in range(2))
    part = FLASH_CPU.forward_segments(query, key, value, cut, causal, 0.3)
    found = FLASH_CPU.backward_segments(grad, query, key, value, part, cut, causal, 0.3)
    pieces = zip(query.split(cut.queries, 2), key.split(cut.keys, 2), value.split(cut.keys, 2), strict=True)
    own = [FLASH_CPU.forward(q, k, v, None, causal, 0.3) for q, k, v in pieces]
    assert relative(part.output, torch.cat([one.output for one in own], 2)) < 1e-6
    assert torch.allclose(part.lse, torch.cat([one.lse for one in own], 2), atol=1e-5)
    graded = zip(
        grad.split(cut.queries, 2),
        query.split(cut.queries, 2),
        key.split(cut.keys, 2),
        value.split(cut.keys, 2),
        own,
        strict=True,
    )
    wanted = [FLASH_CPU.backward(g, q, k, v, one, None, causal, 0.3) for g, q, k, v, one in graded]
    for index in range(3):  # a single key has no gradient of the query, so nothing to be relative to
        assert torch.allclose(found[index], torch.cat([piece[index] for piece in wanted], 2), rtol=1e-5, atol=1e-5)


def test_equal_neighbours_are_one_run() -> None:
    cut = Segments((3, 3, 3, 5, 3), (4, 4, 2, 4, 2))
    assert cut.runs == (
        (2, slice(0, 6), slice(0, 8)),
        (1, slice(6, 9), slice(8, 10)),
        (1, slice(9, 14), slice(10, 14)),
        (1, slice(14, 17), slice(14, 16)),
    )
    *boundaries, most_queries, most_keys = cut.varlen_arguments(torch.device("cpu"))
    assert [boundary.tolist() for boundary in boundaries] == [[0, 3, 6, 9, 14, 17], [0, 4, 8, 10, 14, 16]]
    assert (most_queries, most_keys) == (5, 4)


def test_a_single_run_is_a_view_of_the_kernels_output() -> None:
    seen = []

    def forward(query, key, value, mask, causal, scale):
        part = FLASH_CPU.forward(query, key, value, mask, causal, scale)
        seen.append((query.data_ptr(), key.data_ptr(), part.output.data_ptr()))
        return part

    query, key = torch.randn(1, 6, 4, 8).transpose(1, 2), torch.randn(1, 4, 9, 8)
    flash = replace(FLASH_CPU, forward=forward)
    part = flash.forward_segments(query, key, key, Segments((2, 2, 2), (3, 3, 3)), False, 0.3)
    assert seen == [(query.data_ptr(), key.data_ptr(), part.output.data_ptr())]
