"""Rows packed one behind another give what padded rows give, on every architecture that allows it."""

from __future__ import annotations

import pytest
import torch

from foreword.errors import AttachError, BatchMismatchError, PositionError
from foreword.prefix import Prefix
from foreword.tasks import TaskSettings, make_task
from foreword.training.activations import checkpointed_layers
from parity_helpers import CONTROL, TOLERANCE, make_batch, row_of
from tiny import CASES, DECODERS, VARIANTS, case_name, relative, tiny_base, trained_like

SIZES = [4, 9, 1, 6]
PACKING = [case for case in CASES if case[0] in DECODERS]


def packed_inputs(base):
    batch = make_batch(base, SIZES)
    rows = [row_of(batch, index)["input_ids"] for index in range(len(SIZES))]
    return rows, torch.cat(rows, 1)


@pytest.mark.parametrize("case", PACKING, ids=case_name)
def test_packed_rows_equal_rows_alone(case) -> None:
    base = tiny_base(case[0], **VARIANTS.get(case, {}))
    rows, together = packed_inputs(base)
    a, b = trained_like(base, 5, seed=1, grad=True), trained_like(base, 3, seed=2, grad=True)
    if base.model_slots.packing_limit < max(SIZES):
        with pytest.raises(AttachError, match="packed"), base.attach(a, packed=SIZES):
            pass
        return
    tensors = [part for prefix in (a, b) for kv in prefix.slots.values() for part in kv]
    for prefixes in ([a], [a, b, None, a]):
        own = []
        for prefix, ids in zip(prefixes * (1 if len(prefixes) > 1 else 4), rows, strict=True):
            with base.attach(prefix):
                own.append(base.model(input_ids=ids, use_cache=False).logits)
        wanted = torch.cat(own, 1)
        weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(3))
        apart = torch.autograd.grad((wanted * weight).sum(), tensors, allow_unused=True)
        for backend in ("auto", "math", "reference"):
            with base.attach(prefixes, backend=backend, packed=SIZES):
                found = base.model(input_ids=together, use_cache=False).logits
            assert relative(found, wanted) < TOLERANCE
            gradients = torch.autograd.grad((found * weight).sum(), tensors, allow_unused=True)
            for one, other in zip(gradients, apart, strict=True):
                assert (one is None) == (other is None)
                assert one is None or relative(one, other) < TOLERANCE
    with torch.no_grad(), base.attach([a, b, None, a], packed=[5, 8, 1, 6]):  # one boundary in the wrong place
        assert relative(base.model(input_ids=together, use_cache=False).logits, wanted) > CONTROL


def test_positions_given_from_outside_get_the_offsets() -> None:
    base = tiny_base()
    _, together = packed_inputs(base)
    prefix = trained_like(base, 5)
    own = torch.cat([torch.arange(size) for size in SIZES]).unsqueeze(0)
    with torch.no_grad(), base.attach(prefix, packed=SIZES):
        counted = base.model(input_ids=together, use_cache=False).logits
        given = base.model(input_ids=together, position_ids=own, use_cache=False).logits
        moved = base.model(input_ids=together, position_ids=own * 2, use_cache=False).logits
    assert torch.equal(counted, given)
    assert relative(moved, counted) > CONTROL


def test_packed_rows_are_recomputed_in_backward() -> None:
    base = tiny_base()
    _, together = packed_inputs(base)
    prefix = trained_like(base, 5, grad=True)
    tensors = [part for kv in prefix.slots.values() for part in kv]
    with base.attach(prefix, packed=SIZES):
        plain = torch.autograd.grad(base.model(input_ids=together, use_cache=False).logits.square().sum(), tensors)
    with checkpointed_layers(base, True), base.attach([prefix, None, prefix, prefix], packed=SIZES):
        base.model(input_ids=together, use_cache=False).logits.square().sum()
    with checkpointed_layers(base, True):
        with base.attach(prefix, packed=SIZES):
            total = base.model(input_ids=together, use_cache=False).logits.square().sum()
        again = torch.autograd.grad(total, tensors)
    for one, other in zip(plain, again, strict=True):
        assert relative(one, other) < TOLERANCE


def test_what_is_wrong_with_a_packed_call_is_said() -> None:
    base = tiny_base("gpt2", n_positions=16)
    prefix = trained_like(base, 5)
    ids = torch.arange(20).unsqueeze(0)
    with base.attach(prefix, packed=[4, 9]):
        with pytest.raises(BatchMismatchError, match=r"\[1, 13\]"):
            base.model(input_ids=ids, use_cache=False)
        for asked in ({"use_cache": True}, {}):  # the configuration's own is True
            with pytest.raises(AttachError, match="use_cache=False"):
                base.model(input_ids=ids[:, :13], **asked)
        with pytest.raises(AttachError, match="attention_mask"):
            base.model(input_ids=ids[:, :13], attention_mask=torch.ones(1, 13), use_cache=False)
    with pytest.raises(BatchMismatchError, match="2 prefixes"), base.attach([prefix, None], packed=[4, 4, 4]):
        pass
    with base.attach(prefix, packed=[4, 12]), pytest.raises(PositionError, match="position 16"):
        base.model(input_ids=ids[:, :16], use_cache=False)
    with pytest.raises(AttachError, match="packed"), base.attach(prefix, packed=[3, 0]):
        pass


def test_inserted_prompts_are_not_packed() -> None:
    base = tiny_base("mistral")
    prompt = Prefix({}, 0, base.fingerprint, "embedding", {"embeddings": torch.randn(3, base.embedding_width)})
    with pytest.raises(AttachError, match="inserted"), base.attach(prompt, packed=[4, 4]):
        pass
    task = make_task(base, "lm", TaskSettings("{input}"))
    items = [task.item({"input": text, "target": "y"}, "here") for text in ("ab", "c")]
    assert task.losses(prompt, items).isfinite().all()  # padded by itself
