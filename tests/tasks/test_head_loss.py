"""The loss in chunks is the loss through all logits, forward and backward, on every decoder."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foreword.data import Example
from foreword.tasks import head_loss, lm
from foreword.tasks.head_loss import head_losses, plain, reference_losses
from tiny import BOTH, CASES, DECODERS, VARIANTS, case_name, relative, tiny_base, trained_like

ROWS = [
    Example(tuple(range(10, 10 + prompt)), tuple(range(40, 40 + target)), "", "", (), "")
    for prompt, target in ((3, 4), (6, 1), (2, 7))
]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_chunks_give_the_losses_and_gradients_of_all_logits(bias, dtype, monkeypatch) -> None:
    monkeypatch.setattr(head_loss, "NUMBERS", 16 * 50)  # 16 tokens at a time
    torch.manual_seed(0)
    head = nn.Linear(8, 50, bias=bias).to(dtype).requires_grad_(False)
    hidden = torch.randn(37, 8, dtype=dtype, requires_grad=True)
    targets, weight = torch.randint(50, (37,)), torch.randn(37)
    expected = reference_losses(hidden, head, targets)
    found = head_losses(hidden, head, targets)
    assert found.dtype == expected.dtype
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-6
    assert relative(found, expected) < tolerance
    (wanted,) = torch.autograd.grad((expected * weight).sum(), hidden)
    (got,) = torch.autograd.grad((found * weight).sum(), hidden)
    assert relative(got, wanted) < tolerance
    assert relative(got, wanted.flip(0)) > 0.1


def test_only_a_chunk_of_logits_is_there_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr(head_loss, "NUMBERS", 16 * 50)
    head, sizes, real = nn.Linear(8, 50, bias=False).requires_grad_(False), [], torch.nn.functional.linear

    def counted(hidden, *more):
        sizes.append(len(hidden))
        return real(hidden, *more)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    head_losses(torch.randn(40, 8), head, torch.zeros(40, dtype=torch.long))
    assert sizes == [16, 16, 8]


def test_which_heads_are_used_in_chunks() -> None:
    head = nn.Linear(4, 6).requires_grad_(False)
    assert plain(head)
    assert not plain(nn.Linear(4, 6))  # learns
    assert not plain(nn.Sequential(head))
    assert not plain(None)


@pytest.mark.parametrize("case", [case for case in CASES if case[0] in (*DECODERS, *BOTH)], ids=case_name)
def test_losses_are_those_of_the_models_own_logits(case) -> None:
    """Also where the model scales or caps its logits, packed and padded."""
    if case[0] == "whisper":
        pytest.skip("reads sound")
    base = tiny_base(case[0], **VARIANTS.get(case, {}))
    prefix = trained_like(base, 5, grad=True)
    tensors = [part for kv in prefix.slots.values() for part in kv]
    with base.attach(prefix):
        batch = lm.collate(ROWS, base)
        expected = torch.nn.functional.cross_entropy(lm.target_logits(base, batch), batch.targets, reduction="none")
    wanted = torch.autograd.grad(expected.mean(), tensors, allow_unused=True)
    for packing in (False, True):
        batch = lm.collate(ROWS, base, packing)
        assert (batch.packed is not None) == (packing and base.model_slots.packing_limit >= 8)
        for _ in range(2):  # the first call finds out what the model does with its logits
            with base.attach(prefix, packed=batch.packed):
                found = lm.target_losses(base, batch)
            assert relative(found, expected) < 1e-5
        got = torch.autograd.grad(found.mean(), tensors, allow_unused=True)
        for one, other in zip(got, wanted, strict=True):
            assert (one is None) == (other is None)
            assert one is None or relative(one, other) < 1e-4


def test_a_softcap_behind_the_head_is_found() -> None:
    capped, plainly = tiny_base("gemma2", final_logit_softcapping=2.0), tiny_base("llama")
    for base in (capped, plainly):
        with base.attach(None):
            lm.target_losses(base, lm.collate(ROWS, base))
    assert lm._PLAIN[capped.model] is False
    assert lm._PLAIN[plainly.model] is True
