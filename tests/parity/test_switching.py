"""Switching within an attach, and compiled decoding: the same numbers, without compiling anew."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import StaticCache

from foreword.errors import AttachError, BatchMismatchError, PrefixMismatchError
from parity_helpers import CONTROL, TOLERANCE
from tiny import relative, tiny_base, trained_like


def test_switching_is_attaching_anew() -> None:
    base = tiny_base()
    a, b, ids = trained_like(base, 5, seed=1), trained_like(base, 3, seed=2), torch.arange(12).view(2, 6)

    def logits(rows):
        with torch.no_grad(), base.attach(rows):
            return base.model(input_ids=ids).logits

    plain = base.model(input_ids=ids).logits
    with torch.no_grad(), base.attach(a):
        for rows in (b, [a, b], [None, a], None, a):
            base.switch(rows)
            assert torch.equal(base.model(input_ids=ids).logits, logits(rows) if rows is not None else plain)
        with base.attach(b):
            base.switch(None)
        assert torch.equal(base.model(input_ids=ids).logits, logits(a)), "the outer attach was not restored"
    assert torch.equal(base.model(input_ids=ids).logits, plain)
    assert relative(logits(a), plain) > CONTROL


def test_what_can_not_be_switched_is_said() -> None:
    base = tiny_base()
    prefix = trained_like(base, 5)
    with pytest.raises(AttachError, match="nothing is attached"):
        base.switch(prefix)
    with base.attach(prefix):
        with pytest.raises(PrefixMismatchError):
            base.switch(trained_like(tiny_base("gpt2"), 3))
        base.switch([prefix, None, prefix])
        with pytest.raises(BatchMismatchError):
            base.model(input_ids=torch.arange(4).view(2, 2))
    with base.attach(prefix, packed=[2, 2]), pytest.raises(AttachError, match="packed"):
        base.switch(None)


def decode(base, rows, call, steps=4):
    """Greedy tokens after a prompt of three, with a static cache."""
    model, batch = base.model, 4
    cache = StaticCache(config=model.config, max_cache_len=16)
    mask = torch.zeros(batch, 16, dtype=torch.long)
    mask[:, :3] = 1
    mask[0, 0] = 0  # padded on the left
    logits = []
    with torch.no_grad(), base.attach(rows):
        output = model(input_ids=torch.arange(10, 22).view(batch, 3), attention_mask=mask[:, :3], past_key_values=cache)
        for step in range(steps):
            token = output.logits[:, -1:].argmax(-1)
            mask[:, 3 + step] = 1
            output = call(input_ids=token, attention_mask=mask, past_key_values=cache)
            logits.append(output.logits[:, -1].clone())
    return torch.stack(logits)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_compiled_decoding_is_one_graph_for_all_prefixes_of_a_shape(kind) -> None:
    base = tiny_base(kind)
    a, b, c = (trained_like(base, length, seed=seed) for length, seed in ((5, 1), (5, 2), (3, 3)))
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(base.model.__call__, backend=counter, fullgraph=True, dynamic=False)
    for rows, graphs in ((a, 1), (b, 1), ([a, a, b, c], 2), ([b, b, a, c], 2), (a, 2)):
        expected = decode(base, rows, base.model)
        assert relative(decode(base, rows, compiled), expected) < TOLERANCE / 10  # some CPUs round another way
        assert counter.frame_count == graphs
        assert relative(decode(base, None, base.model), expected) > CONTROL
    torch._dynamo.reset()


def test_switching_needs_no_uncompiled_call_before_a_compiled_one() -> None:
    base = tiny_base()
    a, b = trained_like(base, 5, seed=1), trained_like(base, 5, seed=2)
    counter = CompileCounter()
    torch._dynamo.reset()
    step = torch.compile(base.model.__call__, backend=counter, fullgraph=True, dynamic=False)
    cache, mask = StaticCache(config=base.model.config, max_cache_len=8), torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0]] * 2)
    with torch.no_grad(), base.attach([a, b]):
        base.model(input_ids=torch.arange(4).view(2, 2), attention_mask=mask[:, :2], past_key_values=cache)
        for place, rows in enumerate(([a, b], [b, a], [a, b])):
            mask[:, 2 + place] = 1
            base.switch(rows)
            step(input_ids=torch.full((2, 1), 9), attention_mask=mask, past_key_values=cache)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_prefixes_that_learn_in_one_attach_are_not_kept_as_they_were() -> None:
    base = tiny_base()
    a, b = trained_like(base, 5, seed=1, grad=True), trained_like(base, 3, seed=2, grad=True)
    ids = torch.arange(12).view(2, 6)
    with base.attach([a, b]):
        before = base.model(input_ids=ids).logits
        with torch.no_grad():
            seen = base.model(input_ids=ids).logits
            for prefix in (a, b):
                for kv in prefix.slots.values():
                    kv.value.add_(1.0)
            unseen = base.model(input_ids=ids).logits
        after = base.model(input_ids=ids).logits
    assert torch.equal(before, seen)
    assert torch.equal(after, unseen)
    assert relative(after, before) > CONTROL


def test_what_inference_mode_leaves_serves_gradients() -> None:
    base = tiny_base()
    a, b = trained_like(base, 5, seed=1), trained_like(base, 4, seed=2)
    embeddings = torch.randn(2, 6, base.embedding_width, requires_grad=True)
    for backend in ("auto", "math"):
        with base.attach([b, a], backend=backend):
            with torch.inference_mode():
                base.model(inputs_embeds=embeddings)
            base.model(inputs_embeds=embeddings).logits.sum().backward()
    assert embeddings.grad is not None


def test_a_compiled_step_finds_what_another_batch_size_left() -> None:
    base = tiny_base()
    a, b = trained_like(base, 5, seed=1), trained_like(base, 4, seed=2)
    torch._dynamo.reset()
    step = torch.compile(base.model.__call__, backend=CompileCounter(), fullgraph=True, dynamic=False)
    ids, mask = torch.arange(8).view(4, 2), torch.tensor([[1, 1, 1, 0]] * 4)
    with torch.no_grad(), base.attach([b, a]):
        base.model(input_ids=ids[:2])  # two rows, then twice as many, as beams are
        cache = StaticCache(config=base.model.config, max_cache_len=4)
        base.model(input_ids=ids, attention_mask=mask[:, :2], past_key_values=cache)
        compiled = step(input_ids=ids[:, :1], attention_mask=mask, past_key_values=cache).logits
    assert compiled.shape[0] == 4
    torch._dynamo.reset()
