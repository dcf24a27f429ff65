"""Concatenation and averaging: what is exact, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import foreword
from foreword.errors import PositionError, PrefixMismatchError
from foreword.prefix import KV, Prefix
from parity_helpers import CONTROL, TOLERANCE, make_batch, run
from tiny import relative, tiny_base, trained_like


@pytest.mark.parametrize("kind", ["llama", "cohere2", "gptj", "falcon", "smollm3", "deepseek_v3"])
def test_the_second_stands_behind_the_first(kind) -> None:
    """A prefix that was captured at later positions, cut in two and put together again, is the same prefix."""
    base = tiny_base(kind)
    whole, batch = trained_like(base, 11), make_batch(base, [12, 12])
    first = Prefix({n: KV(*(part[:, :4] for part in kv)) for n, kv in whole.slots.items()}, 4, whole.base)
    rest = Prefix({n: KV(*(part[:, 4:] for part in kv)) for n, kv in whole.slots.items()}, 11, whole.base)
    second = rest.with_offset(7, base)  # as if it had been trained alone
    joined = foreword.concat(first, second, base)
    assert (joined.length, joined.position_offset) == (11, 11)
    expected = run(base, whole, batch)
    assert relative(run(base, joined, batch), expected) < TOLERANCE
    other = foreword.concat(second, first, base)
    assert relative(run(base, other, batch), expected) > CONTROL


@pytest.mark.parametrize("kind", ["bert", "t5", "bloom"])
def test_without_rotary_positions(kind) -> None:
    base = tiny_base(kind)
    a, b = trained_like(base, 4, seed=1), trained_like(base, 5, seed=2)
    joined = foreword.concat(a, b, base)
    assert joined.position_offset == base.default_offset(9)
    name = base.slots[0].name
    assert torch.equal(joined.slots[name].key, torch.cat([a.slots[name].key, b.slots[name].key], 1))
    assert run(base, joined, make_batch(base, [6])).isfinite().all()


def test_slots_of_one_alone_stay(tmp_path) -> None:
    base = tiny_base("t5")
    a = trained_like(base, 4)
    encoder = Prefix({name: kv for name, kv in a.slots.items() if name.startswith("encoder")}, 0, a.base)
    cross = Prefix({name: kv for name, kv in a.slots.items() if name.startswith("cross")}, 0, a.base)
    joined = foreword.concat(encoder, cross, base)
    assert {name.partition(".")[0] for name in joined.slots} == {"encoder", "cross"}
    assert foreword.Prefix.load(joined.save(tmp_path / "joined")).method == "concat"


def test_learned_positions_can_not_be_moved() -> None:
    base = tiny_base("gpt2")
    with pytest.raises(PositionError, match="learned positions"):
        foreword.concat(trained_like(base, 4), trained_like(base, 5), base)


def test_average() -> None:
    base = tiny_base()
    a, b = trained_like(base, 5, seed=1), trained_like(base, 5, seed=2)
    mean = foreword.average([a, b], [1.0, 3.0])
    for name, kv in mean.slots.items():
        assert torch.allclose(kv.key, 0.25 * a.slots[name].key + 0.75 * b.slots[name].key, atol=1e-6)
    assert torch.equal(foreword.average([a, a]).slots["decoder.0"].value, a.slots["decoder.0"].value)
    assert mean.record["weights"] == [0.25, 0.75]
    other = dataclasses.replace(b, base=dataclasses.replace(b.base, weights="sha256:other"))
    wrong = [
        ([], None), ([a, b], [1.0]), ([a, b], [1.0, -1.0]), ([a, trained_like(base, 6)], None), ([a, other], None),
        ([a, Prefix(b.slots, 0, b.base)], None),
    ]  # fmt: skip
    for prefixes, weights in wrong:
        with pytest.raises(PrefixMismatchError):
            foreword.average(prefixes, weights)


def test_what_is_more_than_keys_and_values_is_refused() -> None:
    from method_cases import finished

    base = tiny_base()
    plain = finished(base, ("direct", {}))
    for name in ("gated", "memory", "conditioned"):
        other = finished(base, (name, {}))
        for together in (
            lambda one=other: foreword.concat(plain, one, base),
            lambda one=other: foreword.average([plain, one]),
        ):
            with pytest.raises(PrefixMismatchError, match=f"merge '{name}' is more than keys and values"):
                together()
