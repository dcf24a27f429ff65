"""A cache that grows in place gives what Transformers' own gives, whatever is done to it on the way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, GenerationConfig

from foreword.base import cache as caches
from foreword.base.cache import GrowingLayer, growing_cache
from foreword.base.generation import generate_ids
from tiny import DECODERS, tiny_base, trained_like

ACTIONS = st.lists(st.sampled_from(["one", "many", "crop", "reorder", "repeat", "reset"]), min_size=1, max_size=12)


@settings(deadline=None)
@given(ACTIONS)
def test_a_layer_holds_what_transformers_holds(actions: list[str]) -> None:
    config = tiny_base().model.config
    own, theirs = growing_cache(config), DynamicCache(config=config)
    assert {type(layer) for layer in own.layers} == {GrowingLayer}
    rows, generator = 2, torch.Generator().manual_seed(0)
    for action in actions:
        for cache in (own, theirs):
            if action == "crop" and cache.get_seq_length() > 1:
                cache.crop(-1)
            elif action == "reorder" and cache.get_seq_length():
                cache.reorder_cache(torch.arange(rows).flip(0))
            elif action == "repeat" and cache.get_seq_length() and rows < 8:
                cache.batch_repeat_interleave(2)
            elif action == "reset":
                cache.reset()
        if action == "repeat" and own.get_seq_length() and rows < 8:
            rows *= 2
        if action in ("one", "many"):
            tokens = 1 if action == "one" else 90  # more than the room to spare
            rows = rows if own.get_seq_length() else 2
            key, value = (torch.randn(rows, 2, tokens, 4, generator=generator) for _ in range(2))
            for one, other in zip(own.update(key, value, 0), theirs.update(key, value, 0), strict=True):
                assert torch.equal(one, other)
        assert own.get_seq_length() == theirs.get_seq_length()


def test_most_tokens_are_written_in_place(monkeypatch) -> None:
    layer, grown, real = GrowingLayer(), [], caches._room

    def watched(*given):
        grown.append(given[-1])
        return real(*given)

    monkeypatch.setattr(caches, "_room", watched)
    for _ in range(300):
        layer.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    assert grown == [1, 1, 66, 66, 131, 131, 197, 197, 296, 296]  # keys and values


@pytest.mark.parametrize("kind", DECODERS)
def test_generation_is_the_same(kind) -> None:
    base = tiny_base(kind)
    prompts = [[10, 11, 12, 13], [14, 15], [16]]
    rows = [trained_like(base, 4), None, trained_like(base, 4, seed=2)]
    rows = rows if base.model_slots.route == "attention" else [rows[0]] * 3
    for options in ({}, {"num_beams": 2}):
        options |= {"max_new_tokens": 6}
        theirs = generate_ids(base, prompts, rows, [], options | {"use_cache": True})
        assert generate_ids(base, prompts, rows, [], options) == theirs


@pytest.mark.parametrize("place", ["model", "option"])
@pytest.mark.parametrize("changes", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_a_config_that_asks_for_another_cache_gets_it(place, changes) -> None:
    base = tiny_base()
    prompts, rows = [[10, 11, 12, 13], [14, 15]], [trained_like(base, 4), None]
    expected = generate_ids(base, prompts, rows, [], {"max_new_tokens": 5})
    asked = GenerationConfig(max_new_tokens=5, disable_compile=True, **changes)
    if place == "model":
        base.model.generation_config = asked
        assert generate_ids(base, prompts, rows, [], {}) == expected
    else:
        assert generate_ids(base, prompts, rows, [], {"generation_config": asked}) == expected
