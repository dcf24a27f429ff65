"""Initialisation: text, vocab, random and prefix."""

from __future__ import annotations

import pytest
import torch

from foreword.base.rendering import Renderer
from foreword.data import Example
from foreword.errors import ConfigError
from foreword.init import Beginning, starting_point
from foreword.methods import Start
from foreword.prefix import Prefix
from tiny import byte_tokenizer, relative, tiny_base


def example(prompt: str, target: str) -> Example:
    renderer = Renderer(byte_tokenizer(), "{input}")
    ids = tuple(renderer.prompt_ids(prompt)), tuple(renderer.target_ids(prompt, target))
    return Example(*ids, prompt, target, (target,), "rows:1")


ROWS = [example("name one", "first answer"), example("name two", "second answer"), example("three", "the last")]


def make(**settings) -> Prefix:
    return starting_point(tiny_base(), ROWS, Beginning(length=12, **settings)).prefix


def same(one: Prefix, other: Prefix) -> bool:
    return all(torch.equal(a, b) for (_, a), (_, b) in zip(one.tensors(), other.tensors(), strict=True))


def test_text_default_is_the_first_rows_as_they_are_trained_on() -> None:
    base = tiny_base()
    ids = [*ROWS[0].prompt_ids, *ROWS[0].target_ids][:12]
    captured = base.capture(torch.tensor([ids]))
    prefix = make()
    assert all(torch.equal(prefix.slots[name].key, kv.key) for name, kv in captured.items())
    assert prefix.length == prefix.position_offset == 12


def test_text_given_is_cut_or_repeated() -> None:
    base = tiny_base()
    assert same(make(text="abcdefghijklmnop"), Prefix.from_text("abcdefghijkl", base))
    assert same(make(text="abcde"), Prefix.from_text("abcdeabcdeab", base))


def test_vocab_samples_frequent_tokens_or_takes_words() -> None:
    assert same(make(init="vocab", text="food place"), Prefix.from_text("food placefo", tiny_base()))
    one, again, other = make(init="vocab", seed=1), make(init="vocab", seed=1), make(init="vocab", seed=2)
    assert same(one, again)
    assert not same(one, other)


def test_random_has_the_spread_of_real_activations() -> None:
    base = tiny_base()
    one, again, other = (
        starting_point(base, ROWS, Beginning(length=400, init="random", seed=seed)).prefix for seed in (1, 1, 2)
    )
    assert same(one, again)
    assert not same(one, other)
    ids = [token for row in ROWS for token in (*row.prompt_ids, *row.target_ids)]
    for name, real in base.capture(torch.tensor([ids])).items():
        for drawn, measured in zip(one.slots[name], real, strict=True):
            expected = measured[:, 1:].std(1, unbiased=False)
            assert relative(drawn.std(1), expected) < 0.1
            assert relative(torch.ones_like(expected), expected) > 0.1, "N(0, 1) would pass too"


def test_prefix_goes_on_from_another(tmp_path) -> None:
    saved = make(text="something")
    saved.save(tmp_path / "p")
    assert same(make(init="prefix", prefix=str(tmp_path / "p")), saved)
    with pytest.raises(ConfigError, match=r"length: is 5, but .* has 12"):
        starting_point(tiny_base(), ROWS, Beginning(length=5, init="prefix", prefix=str(tmp_path / "p")))


def test_labels_are_the_words_of_the_classes() -> None:
    start = starting_point(tiny_base(), ROWS, Beginning(length=12, init="labels"), ["card_lost", "ok"])
    assert same(start.prefix, Prefix.from_text("card lost ok", tiny_base()))
    with pytest.raises(ConfigError, match="needs classes; this task has none"):
        make(init="labels")


def embeddings_of(start: Start) -> torch.Tensor:
    assert start.embeddings is not None
    return start.embeddings


@pytest.mark.parametrize("kind", ["llama", "bert", "t5", "albert"])
def test_mean_is_the_mean_of_the_tasks_words_each_moved_a_little(kind) -> None:
    base = tiny_base(kind)
    config = Beginning(length=40, init="mean", text="food place")
    start = starting_point(base, ROWS, config)
    embeddings = embeddings_of(start)
    words = base.model.get_input_embeddings()(torch.tensor(base.tokenizer("food place")["input_ids"])).detach()
    assert embeddings.shape == (40, words.shape[1])
    assert relative(embeddings.mean(0), words.mean(0)) < 0.1
    spread = (embeddings - words.mean(0)).std()
    assert float(spread) == pytest.approx(0.1 * float(words.std()), rel=0.1)
    assert {kv.length for kv in start.prefix.slots.values()} == {40}
    assert same(start.prefix, starting_point(base, ROWS, config).prefix)
    seen = base.capture(
        inputs_embeds=embeddings[None],
        **({"decoder_inputs_embeds": embeddings[None]} if kind == "t5" else {}),
    )
    assert all(torch.equal(start.prefix.slots[name].key, kv.key) for name, kv in seen.items())
    frequent = embeddings_of(starting_point(base, ROWS, Beginning(length=40, init="mean"))).mean(0)
    assert relative(frequent, words.mean(0)) > 0.1


@pytest.mark.parametrize("kind", ["bart", "albert", "t5"])
def test_embeddings_are_those_that_the_first_stack_sees(kind) -> None:
    base = tiny_base(kind)
    start = starting_point(base, ROWS, Beginning(length=12))
    embeddings = embeddings_of(start)
    seen = base.capture(
        inputs_embeds=embeddings[None],
        **({"decoder_inputs_embeds": embeddings[None]} if kind in ("bart", "t5") else {}),
    )
    for name, kv in start.prefix.slots.items():
        assert relative(kv.key, seen[name].key) < 1e-5
