"""Switching within an attach, and compiled decoding: the same numbers, without compiling anew."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import StaticCache

from foreword.errors import AttachError, BatchMismatchError, PrefixMismatchError
from parity_helpers import CONTROL
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
        assert torch.equal(decode(base, rows, compiled), expected)
        assert counter.frame_count == graphs
        assert relative(decode(base, None, base.model), expected) > CONTROL
    torch._dynamo.reset()
