"""The route through `past_key_values`: what it can't do says so, and the caller's cache is its own."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from foreword.errors import AttachError, PrefixMismatchError
from foreword.prefix import KV, Prefix
from parity_helpers import TOLERANCE, make_batch, run
from tiny import CACHED, relative, tiny_base, trained_like


def test_every_layer_needs_one_length() -> None:
    base = tiny_base("bloom")
    prefix = trained_like(base, 5)
    some = Prefix({name: kv for name, kv in prefix.slots.items() if name != "decoder.1"}, 5, prefix.base)
    with pytest.raises(PrefixMismatchError, match=r"none for decoder\.1"), base.attach(some):
        pass
    short = dict(prefix.slots) | {"decoder.1": KV(*(part[:, :3] for part in prefix.slots["decoder.1"]))}
    with pytest.raises(PrefixMismatchError, match=r"lengths \[3, 5\]"), base.attach(Prefix(short, 5, prefix.base)):
        pass


@pytest.mark.parametrize("kind", ["bloom", "falcon", "mpt", "gptj", "codegen"])
def test_the_callers_cache_holds_real_tokens_only(kind) -> None:
    """Two calls with one cache equal one call, and the cache never grows by the prefix."""
    base = tiny_base(kind)
    a, b, batch = trained_like(base, 6), trained_like(base, 9, seed=3), make_batch(base, [10, 10])
    ids, rows = batch["input_ids"], [a, b]
    with torch.no_grad(), base.attach(rows):
        whole = base.model(ids).logits
        cache = DynamicCache(config=base.model.config)
        first = base.model(ids[:, :6], past_key_values=cache, use_cache=True)
        assert cache.get_seq_length() == 6
        if first.get("past_key_values") is not None:
            assert first.past_key_values is cache
        second = base.model(ids[:, 6:], past_key_values=cache, use_cache=True).logits
        assert cache.get_seq_length() == 10
    assert relative(torch.cat([first.logits, second], 1), whole) < TOLERANCE


@pytest.mark.parametrize("kind", ["bloom", "falcon", "gptj", "codegen"])
def test_a_cache_the_model_makes_comes_back_without_the_prefix(kind) -> None:
    base = tiny_base(kind)
    prefix, batch = trained_like(base, 6), make_batch(base, [10])
    with torch.no_grad(), base.attach(prefix):
        made = base.model(batch["input_ids"], use_cache=True)
        assert made.past_key_values.get_seq_length() == 10
        plain = base.model.transformer(batch["input_ids"], use_cache=True, return_dict=False)
        assert any(getattr(part, "get_seq_length", int)() == 10 for part in plain)


def test_a_4d_mask_is_refused() -> None:
    base = tiny_base("bloom")
    with base.attach(trained_like(base, 4)), pytest.raises(AttachError, match="2-D attention mask"):
        base.model(make_batch(base, [5])["input_ids"], attention_mask=torch.ones(1, 1, 5, 5, dtype=torch.bool))


def test_rows_without_a_prefix_are_the_plain_base() -> None:
    base = tiny_base("mpt")
    batch = make_batch(base, [9, 5], "left")
    assert relative(run(base, [None, None], batch)[0], base.model(**batch).logits[0]) < TOLERANCE


@pytest.mark.parametrize("kind", CACHED)
def test_capture_inside_an_attach_sees_no_prefix(kind) -> None:
    base = tiny_base(kind)
    ids = make_batch(base, [8])["input_ids"]
    outside = base.capture(ids)
    with base.attach(trained_like(base, 6)):
        inside = base.capture(ids)
    for name, kv in outside.items():
        assert torch.equal(inside[name].key, kv.key)


@pytest.mark.parametrize("kind", ["gptj", "codegen"])
def test_packed_texts_are_refused(kind) -> None:
    base = tiny_base(kind)
    packed = torch.cat([torch.arange(5), torch.arange(7)])[None]
    ids = make_batch(base, [12])["input_ids"]
    with base.attach(trained_like(base, 4)):
        base.model(ids, position_ids=torch.arange(12)[None], use_cache=False)
        with pytest.raises(AttachError, match="one text"):
            base.model(ids, position_ids=packed, use_cache=False)
