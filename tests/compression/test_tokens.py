"""Attention mass, and fewer tokens by it: exact where nothing attends, and at the offset that was trained."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from foreword.attention.call import NEG_INF, AttentionCall, causal_mask
from foreword.base import Base
from foreword.compression.mass import attention_mass, prefix_weights
from foreword.compression.tokens import drop, kept_tokens, merge, require_tokens
from foreword.data import Example
from foreword.errors import AttachError, CompressionError, PositionError, UnsupportedModelError
from foreword.prefix import KV, Prefix
from tiny import byte_tokenizer, relative, sample_inputs, tiny_base, tiny_model, trained_like

HALF = Fraction(1, 2)
CHANNEL = 7  # with RoPE one of the pair that turns least


def examples(*sizes: int) -> list[Example]:
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(3, 250, (size,), generator=generator).tolist() for size in sizes]
    return [Example(tuple(row[:-2]), tuple(row[-2:]), "", "", ("",), f"x:{i}") for i, row in enumerate(rows)]


def one_sided(kind: str) -> Base:
    """A model all of whose queries have a large number in one channel, so that keys can be made to repel them."""
    model = tiny_model(kind)
    with torch.no_grad():
        for layer in model.model.layers if kind == "qwen2" else model.transformer.h:
            bias = layer.self_attn.q_proj.bias if kind == "qwen2" else layer.attn.c_attn.bias[:64]
            bias.view(4, 16)[:, CHANNEL] = 400.0
    return Base(model, byte_tokenizer(), name=f"one-sided-{kind}")


def repelling(prefix: Prefix, token: int) -> Prefix:
    """`prefix` with a `token` that no such query attends to, and values that would be noticed."""
    slots = {}
    for name, kv in prefix.slots.items():
        key, value = kv.key.clone(), kv.value.clone()
        key[:, token], value[:, token] = 0.0, 100.0
        key[:, token, CHANNEL] = -400.0
        slots[name] = KV(key, value)
    return replace(prefix, slots=slots)


def logits(base: Base, prefix: Prefix) -> torch.Tensor:
    ids = torch.tensor([[*row.prompt_ids, *row.target_ids] for row in examples(9, 9)])
    with torch.no_grad(), base.attach(prefix):
        return base.model(ids).logits


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])  # rotary and learned positions
def test_a_token_that_nothing_attends_to_can_go(kind) -> None:
    base = one_sided(kind)
    prefix = repelling(trained_like(base, 4), 2)
    mass = attention_mass(base, prefix, examples(9, 9))
    assert all(float(part[:, 2].max()) == 0.0 for part in mass.values())
    whole = logits(base, prefix)
    three = Fraction(3, 4)
    for shorten in (drop, merge):
        shorter = shorten(prefix, mass, three)
        assert {kv.length for kv in shorter.slots.values()} == {3}
        assert shorter.position_offset == prefix.position_offset == 4
        assert relative(logits(base, shorter), whole) < 1e-5
        # at the offset of its new length, real tokens would stand elsewhere
        assert relative(logits(base, replace(shorter, position_offset=3)), whole) > 1e-3
    upside_down = {name: 1 - part for name, part in mass.items()}  # the most attended one of each head goes
    assert relative(logits(base, drop(prefix, upside_down, three)), whole) > 1e-3


def test_each_head_keeps_its_own_and_in_order() -> None:
    mass = torch.tensor([[0.1, 0.5, 0.2, 0.3], [0.9, 0.0, 0.0, 0.05]])
    assert kept_tokens(mass, HALF).tolist() == [[1, 3], [0, 3]]
    assert kept_tokens(torch.ones(1, 4), HALF).tolist() == [[0, 1]]
    assert kept_tokens(mass, Fraction(1, 100)).tolist() == [[1], [0]]
    assert kept_tokens(mass[:, :0], HALF).shape == (2, 0)
    base = tiny_base()
    prefix = trained_like(base, 4)
    shorter = drop(prefix, dict.fromkeys(prefix.slots, mass), HALF)
    for name, kv in shorter.slots.items():
        for part, old in zip(kv, prefix.slots[name], strict=True):
            assert torch.equal(part[0], old[0, [1, 3]])
            assert torch.equal(part[1], old[1, [0, 3]])


def test_merging_is_the_mean_by_mass_with_the_most_alike() -> None:
    key = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 0.1], [0.1, 3.0]]])
    value = torch.arange(8.0).reshape(1, 4, 2)
    mass = torch.tensor([[0.6, 0.3, 0.2, 0.1]])
    prefix = Prefix({"decoder.0": KV(key, value)}, 4, tiny_base().fingerprint)
    merged = merge(prefix, {"decoder.0": mass}, HALF).slots["decoder.0"]
    for part, old in zip(merged, (key, value), strict=True):
        assert torch.allclose(part[0, 0], (0.6 * old[0, 0] + 0.2 * old[0, 2]) / 0.8)
        assert torch.allclose(part[0, 1], (0.3 * old[0, 1] + 0.1 * old[0, 3]) / 0.4)


def test_merging_two_alike_gives_the_one_and_loses_half_their_mass() -> None:
    """As the docstring says: log 2 is missing from the score, so this is not exact."""
    base = tiny_base()
    single = trained_like(base, 1)
    double = replace(single, slots={name: KV(*(p.repeat(1, 2, 1) for p in kv)) for name, kv in single.slots.items()})
    mass = attention_mass(base, double, examples(9, 9))
    merged = merge(double, mass, HALF)
    for name, kv in merged.slots.items():
        for part, old in zip(kv, single.slots[name], strict=True):
            assert torch.allclose(part, old, rtol=1e-6)
    assert relative(logits(base, merged), logits(base, double)) > 1e-3


def test_extras_of_the_longer_prefix_go() -> None:
    base = tiny_base()
    prefix = replace(trained_like(base, 4), extras={"embeddings": torch.ones(4, 64)})
    assert not drop(prefix, dict.fromkeys(prefix.slots, torch.rand(2, 4)), HALF).extras


def explicit(call: AttentionCall, kv: KV) -> torch.Tensor:
    """One softmax over the concatenation, written out."""
    groups = call.query.shape[1] // kv.key.shape[0]
    key = torch.cat([kv.key.expand(call.batch, -1, -1, -1), call.key], 2).repeat_interleave(groups, 1)
    scores = call.query @ key.transpose(-1, -2) * call.scale
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    if call.causal:
        scores[..., kv.length :] += causal_mask(call.query.shape[2], scores)
    if call.mask is not None:
        scores[..., kv.length :] += call.mask
    if call.sinks is not None:
        scores = torch.cat([scores, call.sinks.view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)], -1)
    return scores.softmax(-1)[..., : kv.length]


@pytest.mark.parametrize("special", ["causal", "mask", "softcap", "sinks"])
def test_weights_are_those_of_one_softmax_over_everything(special) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, 8, dtype=torch.float64) for heads in (4, 2, 2))
    kv = KV(*(torch.randn(2, 3, 8, dtype=torch.float64) for _ in range(2)))
    mask = torch.zeros(2, 1, 5, 5, dtype=torch.float64)
    mask[1, ..., :2] = NEG_INF
    call = AttentionCall(
        query, key, value, mask if special == "mask" else None, None, special == "causal", 0.5,
        softcap=2.0 if special == "softcap" else None, sinks=torch.randn(4).double() if special == "sinks" else None,
    )  # fmt: skip
    assert torch.allclose(prefix_weights(call, kv), explicit(call, kv), atol=1e-12)


def test_mass_does_not_depend_on_padding_and_is_a_share() -> None:
    base = tiny_base()
    prefix = trained_like(base, 6)
    rows = examples(5, 12, 8)
    together, alone = attention_mass(base, prefix, rows, 3), attention_mass(base, prefix, rows, 1)
    assert list(together) == list(prefix.slots)
    for name, mass in together.items():
        assert mass.shape == (2, 6)
        assert torch.allclose(mass, alone[name], atol=1e-5)
        assert bool((mass >= 0).all())
        assert bool((mass.sum(1) <= 1).all())
        assert float(mass.sum()) > 0.01
    with torch.no_grad():  # nothing stays behind
        before = base.model(torch.tensor([[5, 6]])).logits
        attention_mass(base, prefix, rows[:1])
        assert torch.equal(base.model(torch.tensor([[5, 6]])).logits, before)


@pytest.mark.parametrize("kind", ["bloom", "gptj"])
def test_models_with_attention_of_their_own_keep_every_token(kind) -> None:
    base = tiny_base(kind)
    prefix = trained_like(base, 4)
    with pytest.raises(PositionError if kind == "bloom" else CompressionError, match="choose svd or int8"):
        require_tokens(base, prefix)
    with pytest.raises(AttachError, match="can't be seen"):
        attention_mass(base, prefix, examples(5))
    shorter = drop(prefix, {name: torch.rand(kv.key.shape[:2]) for name, kv in prefix.slots.items()}, HALF)
    ids = sample_inputs(base, 5)["input_ids"]
    if kind == "bloom":  # counts positions by the cache
        with pytest.raises(PositionError, match="offset must be the prefix's length 2, not 4"), base.attach(shorter):
            base.model(ids)
    else:
        with torch.no_grad(), base.attach(shorter):
            assert base.model(ids).logits.isfinite().all()


def test_mass_needs_a_decoder() -> None:
    base = tiny_base("bert")
    with pytest.raises(UnsupportedModelError, match="needs a decoder"):
        attention_mass(base, trained_like(base, 3), examples(5))
    decoder = tiny_base()
    require_tokens(decoder, trained_like(decoder, 3))


def test_a_t5_prefix_in_which_each_key_has_a_place_keeps_every_token() -> None:
    base = tiny_base("t5")
    prefix = trained_like(base, 3)
    require_tokens(base, prefix)
    with pytest.raises(PositionError, match="a place for each key"):
        require_tokens(base, replace(prefix, position_offset=3))
