"""int8: the error is bounded in each channel, for numbers of any size, and its gradient passes straight through."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.compression.forms import PLAIN, Student
from foreword.compression.int8 import Int8, encode, int8_form
from foreword.errors import CompressionError
from prefix_helpers import small


@settings(max_examples=80, deadline=None)
@given(
    exponents=st.lists(st.integers(-9, 5), min_size=3, max_size=3),
    length=st.integers(1, 7),
    seed=st.integers(0, 1000),
)
def test_error_is_bounded_in_each_channel(exponents, length, seed) -> None:
    """Channels of very different sizes: each is within half its own step, which is its largest number / 127 and one
    rounding of float16."""
    sizes = 10.0 ** torch.tensor(exponents, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(2, length, 3, dtype=torch.float64, generator=generator) * sizes
    stored = encode(tensor)
    scale = stored.parts["scale"].double()
    assert stored.parts["int8"].abs().max() <= 127
    largest = tensor.abs().amax(1, keepdim=True)
    assert bool((scale >= largest / 127).all())
    assert bool((scale <= largest / 127 * (1 + 2**-10) + 2**-24).all())
    error = (stored.decode(tensor.shape, torch.float64) - tensor).abs()
    assert bool((error <= scale / 2 * (1 + 1e-12)).all())


def test_one_channels_outlier_costs_the_others_nothing() -> None:
    tensor = torch.randn(1, 16, 4)
    alone = encode(tensor).decode(tensor.shape, torch.float32)
    tensor[0, 3, 2] = 1e4
    beside = encode(tensor).decode(tensor.shape, torch.float32)
    others = [0, 1, 3]
    assert torch.equal(alone[..., others], beside[..., others])
    assert not torch.equal(alone[..., 2], beside[..., 2])


def test_zeros_stay_zeros_and_no_tokens_stay_plain() -> None:
    assert not encode(torch.zeros(2, 3, 4)).decode([2, 3, 4], torch.float16).any()
    assert int8_form(torch.zeros(2, 0, 4)) is PLAIN
    assert int8_form(torch.zeros(2, 1, 4)) is not PLAIN


def test_too_large_a_number_is_refused() -> None:
    with pytest.raises(CompressionError, match="too large for a float16 scale"):
        encode(torch.tensor([[[1e8]]]))


def test_encoding_what_was_decoded_changes_nothing_more() -> None:
    made = Student(small(8, torch.float32), int8_form).finish()
    again = Student(made.prefix, int8_form).finish()
    for (name, one), (_, other) in zip(made.prefix.tensors(), again.prefix.tensors(), strict=True):
        assert torch.allclose(one, other, atol=float(one.abs().max()) / 127 / 100), name


def test_attention_sees_the_rounded_values_and_the_gradient_passes() -> None:
    tensor = torch.randn(2, 5, 4, requires_grad=True)
    form = Int8()
    seen = form.value([tensor], tensor.shape, torch.float32)
    stored = form.stored([tensor], tensor.shape, torch.float32).decode(tensor.shape, torch.float32)
    assert torch.allclose(seen, stored, atol=1e-6)
    assert not torch.allclose(seen, tensor, atol=1e-6)
    weights = torch.randn_like(tensor)
    (seen * weights).sum().backward()
    assert tensor.grad is not None
    assert torch.equal(tensor.grad, weights)
