"""The CUDA backends against the reference; ready to run where there is a GPU (`make test ARGS='-m gpu'`)."""

from __future__ import annotations

import pytest
import torch

from foreword.attention import backends
from foreword.attention.call import AttentionCall
from foreword.attention.merge import two_part_attention
from foreword.attention.reference import reference_attention
from foreword.prefix import KV
from sharing_helpers import shared_of
from tiny import random_batch, relative, tiny_base, trained_like

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("n", [1, 64, 200])
def test_flash_cuda_equals_the_reference(n) -> None:
    torch.manual_seed(0)
    shapes = [(3, 8, n, 64), (3, 2, n, 64), (3, 2, n, 64), (2, 37, 64), (2, 37, 64)]
    inputs = [torch.randn(*shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    exact = [tensor.detach().double().cpu().requires_grad_() for tensor in inputs]
    calls = [AttentionCall(q, k, v, None, None, n > 1, 0.125) for q, k, v, *_ in (inputs, exact)]
    assert backends.choose(calls[0]) is backends.FLASH_CUDA
    output = two_part_attention(
        calls[0], shared_of([None], [KV(*inputs[3:])], 3, n, torch.device("cuda")), backends.FLASH_CUDA
    )
    expected = reference_attention(calls[1], [KV(*exact[3:])] * 3)
    assert relative(output.cpu(), expected) < 1e-2
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), exact)
    found = torch.autograd.grad((output * weight.to(output)).sum(), inputs)
    for one, other in zip(found, wanted, strict=True):
        assert relative(one.cpu(), other) < 2e-2


def test_a_model_on_cuda_equals_cpu() -> None:
    base = tiny_base()
    prefix, batch = trained_like(base, 7), random_batch([9, 5])
    with base.attach(prefix):
        expected = base.model(**batch).logits
    base.model.to("cuda")
    with base.attach([prefix, None]):
        logits = base.model(**{name: tensor.cuda() for name, tensor in batch.items()}).logits
    assert relative(logits[:1].cpu(), expected[:1]) < 1e-4
