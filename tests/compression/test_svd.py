"""SVD: exact at full rank, the best approximation below it, and what the factors cost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from foreword.compression.forms import PLAIN, Student
from foreword.compression.svd import Svd, svd_form
from foreword.prefix.encoding import by_token, from_tokens
from prefix_helpers import small
from tiny import relative, tiny_base, trained_like


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_full_rank_is_exact_to_float_tolerance(dtype) -> None:
    tensor = torch.randn(3, 8, 16).to(dtype)
    form = Svd(8)
    stored = form.stored(form.start(tensor), tensor.shape, dtype)
    assert stored.parts["left"].shape == (8, 8)
    assert stored.parts["right"].shape == (8, 48)
    eps = torch.finfo(dtype).eps
    assert relative(stored.decode(tensor.shape, dtype), tensor) < 20 * eps
    lower = Svd(7)
    assert relative(lower.value(lower.start(tensor), tensor.shape, dtype), tensor) > 1e-3


def test_a_lower_rank_loses_exactly_the_small_singular_values() -> None:
    """Eckart–Young: the error's norm is that of the singular values left out."""
    tensor = torch.randn(2, 10, 6, dtype=torch.float64)
    singular = torch.linalg.svdvals(by_token(tensor))
    for rank in (1, 4, 9):
        form = Svd(rank)
        error = form.value(form.start(tensor), tensor.shape, tensor.dtype) - tensor
        assert float(error.norm()) == pytest.approx(float(singular[rank:].norm()), rel=1e-9)


def with_rank(rank: int) -> Callable[[torch.Tensor], Svd]:
    return lambda tensor: Svd(rank)


def test_by_token_puts_a_tokens_heads_side_by_side() -> None:
    tensor = torch.arange(24.0).reshape(2, 3, 4)
    assert by_token(tensor)[1].tolist() == [4, 5, 6, 7, 16, 17, 18, 19]
    assert torch.equal(from_tokens(by_token(tensor), tensor.shape), tensor)


def test_factors_are_used_only_where_they_are_smaller() -> None:
    tensor = torch.randn(3, 32, 64)
    assert svd_form(27, tensor) == Svd(27)  # 27 · (32 + 192) < 32 · 192
    assert svd_form(28, tensor) is PLAIN
    assert svd_form(4, torch.randn(2, 0, 4)) is PLAIN
    assert svd_form(4, torch.randn(2, 3, 4)) is PLAIN


def test_a_student_of_full_rank_is_the_prefix(tmp_path) -> None:
    prefix = small(length=4)
    made = Student(prefix, lambda tensor: Svd(4)).finish()
    assert set(made.encoding) == {name for name, _ in prefix.tensors()}
    for name, tensor in prefix.tensors():
        assert relative(dict(made.prefix.tensors())[name], tensor) < 1e-5


def test_outputs_follow_the_rank() -> None:
    base = tiny_base()
    prefix = trained_like(base, 8)
    ids = torch.randint(3, 250, (2, 9))
    with torch.no_grad(), base.attach(prefix):
        whole = base.model(ids).logits
    errors = []
    for rank in (8, 4, 1):
        made = Student(prefix, with_rank(rank)).finish()
        with torch.no_grad(), base.attach(made.prefix):
            errors.append(relative(base.model(ids).logits, whole))
    assert errors[0] < 1e-3
    assert errors[0] < errors[1] < errors[2]
