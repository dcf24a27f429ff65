"""The CUDA paths without a GPU: the kernels' arguments and shapes, and that no step waits."""

from __future__ import annotations

import pytest
import torch

from foreword.attention.backends import FLASH_CUDA
from foreword.attention.call import AttentionCall
from foreword.attention.merge import two_part_attention
from foreword.attention.segments import Segments
from foreword.data import Example
from foreword.placing import placed
from foreword.prefix import KV, Prefix
from foreword.tasks.lm import collate, target_losses
from reads import Reads
from sharing_helpers import shared_of
from tiny import tiny_base, trained_like

META = torch.device("meta")
LENGTHS = (3, 9, 4)


def on_meta(*shape: int) -> torch.Tensor:
    """A tensor of a shape and no numbers: kernels check their arguments and say what they would return."""
    return torch.empty(*shape, device=META, dtype=torch.bfloat16, requires_grad=True)


@pytest.mark.parametrize("packed", [None, Segments(LENGTHS, LENGTHS)])
@pytest.mark.parametrize("rows", [[None], [[0, 2], [1]]])
def test_cuda_kernels_take_what_they_are_given(packed, rows) -> None:
    batch, n = (1, sum(LENGTHS)) if packed else (3, 6)
    served = n if packed else batch
    if rows != [None] and packed:
        rows = [[*range(3), *range(12, 16)], list(range(3, 12))]
    query, key, value = on_meta(batch, 8, n, 64), on_meta(batch, 2, n, 64), on_meta(batch, 2, n, 64)
    kvs = [KV(on_meta(2, 5 + index, 64), on_meta(2, 5 + index, 64)) for index in range(len(rows))]
    call = AttentionCall(query, key, value, None, None, True, 0.125)
    output = two_part_attention(call, shared_of(rows, kvs, served, 1 if packed else n, META), FLASH_CUDA, packed)
    assert output.shape == (batch, 8, n, 64)
    output.sum().backward()
    for tensor in (query, key, value, *(part for kv in kvs for part in kv)):
        assert tensor.grad is not None
        assert tensor.grad.shape == tensor.shape


def step(base, prefix, examples) -> None:
    """A training step up to its gradients."""
    batch = collate(examples, base, packing=True)
    with base.attach(prefix, packed=batch.packed):
        losses = target_losses(base, batch)
    losses.mean().backward()
    assert all(kv.key.grad is not None for kv in prefix.slots.values())


def test_a_training_step_reads_no_number() -> None:
    base = tiny_base()
    slots = trained_like(base, 7).slots.items()
    kvs = {name: KV(*(part.clone().requires_grad_() for part in kv)) for name, kv in slots}
    prefix = Prefix(kvs, 7, base.fingerprint)
    examples = [Example(tuple(range(3, 3 + n)), (5, 6, 7), "a", "b", ("b",), "x:1") for n in (4, 6, 6)]
    step(base, prefix, examples)  # the first finds out whether the logits are the output layer's
    with Reads() as reads:
        step(base, prefix, examples)
    assert reads.count == 0
    with Reads() as control:
        float(torch.ones(2).sum())
    assert control.count == 1


def test_numbers_are_placed_through_pinned_memory(monkeypatch) -> None:
    seen: list[object] = []

    class Made:
        def pin_memory(self):
            seen.append("pinned")
            return self

        def to(self, device, non_blocking=False):
            seen.append((device.type, non_blocking))
            return self

    monkeypatch.setattr(torch, "tensor", lambda values, dtype=None: Made())
    placed([1, 2], torch.device("cuda"))
    assert seen == ["pinned", ("cuda", True)]


def test_placed_numbers_are_those_given() -> None:
    assert placed([[1, 2], [3, 4]], torch.device("cpu")).tolist() == [[1, 2], [3, 4]]
    assert placed([0, 5], torch.device("cpu"), torch.int32).dtype == torch.int32
