"""The kinds of prefix: what each is made of, what is true of it, and which bases it fits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from foreword.errors import PrefixError, PrefixMismatchError
from foreword.prefix import KV
from foreword.prefix.kinds import (
    CONDITIONED,
    EMBEDDING,
    GATED,
    KINDS,
    MEMORY,
    SOFTMAX,
    Gated,
    Memory,
    kind_called,
)

SLOTS = {
    "decoder.0": KV(torch.randn(2, 5, 4), torch.randn(2, 5, 3)),
    "decoder.1": KV(torch.randn(2, 3, 4), torch.randn(2, 3, 3)),
}
HEADS, KEY, VALUE, WIDTH = 6, 4, 3, 8
SHAPE = SimpleNamespace(num_heads=HEADS, key_dim=KEY, value_dim=VALUE)
KNOWN = {"decoder.0": SHAPE, "decoder.1": SHAPE}
NETWORK = {
    "condition.left": torch.randn(5, 2),
    "condition.inner": torch.randn(7, WIDTH),
    "condition.inner_bias": torch.randn(7),
    "condition.outer": torch.randn(2, 7),
    "condition.outer_bias": torch.randn(2),
    "condition.right.decoder.0": torch.randn(2, 14),
    "condition.right.decoder.1": torch.randn(2, 14),
}
# What a prefix of each kind is made of
MADE: dict[str, tuple[dict[str, KV], dict[str, torch.Tensor]]] = {
    "softmax": (SLOTS, {}),
    "gated": (SLOTS, {f"{name}.gate": torch.randn(HEADS) for name in SLOTS}),
    "memory": ({}, {f"{name}.memory": torch.randn(HEADS, KEY, VALUE) for name in SLOTS}),
    "conditioned": (SLOTS, NETWORK),
    "embedding": ({}, {"embeddings": torch.randn(5, WIDTH)}),
}


def test_every_kind_is_made_of_something_here() -> None:
    assert list(MADE) == list(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_it_takes_what_it_is_made_of(name) -> None:
    slots, extras = MADE[name]
    assert kind_called(name) is KINDS[name]
    KINDS[name].check(slots, extras)
    KINDS[name].require_fit(slots, extras, KNOWN, WIDTH, "base")


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PrefixError, match=r"merge 'sum' is not known \(known: softmax, gated, memory, conditioned"):
        kind_called("sum")


@pytest.mark.parametrize("name", [name for name in KINDS if name != "softmax"])
def test_one_extra_tensor_too_many_is_refused(name) -> None:
    slots, extras = MADE[name]
    with pytest.raises(PrefixError, match=rf"a prefix of merge '{name}' has no use for odd"):
        KINDS[name].check(slots, extras | {"odd": torch.zeros(3, 4)})


def test_a_cache_may_carry_the_embeddings_that_its_training_goes_on_from() -> None:
    SOFTMAX.check(SLOTS, {"embeddings": torch.randn(5, WIDTH)})
    assert SOFTMAX.embeddings({"embeddings": torch.randn(5, WIDTH)}) is None  # they are not inserted


@pytest.mark.parametrize(("name", "tensor"), [(name, tensor) for name in KINDS for tensor in MADE[name][1]])
def test_each_extra_tensor_must_be_there_floating_point_and_of_its_dimensions(name, tensor) -> None:
    slots, extras = MADE[name]
    wrong = {
        "more dimensions": extras[tensor][None],
        "whole numbers": extras[tensor].long(),
    }
    for changed in wrong.values():
        with pytest.raises(PrefixError, match=rf"{tensor} must be floating point of \d dimensions"):
            KINDS[name].check(slots, extras | {tensor: changed})
    if name != "memory":  # whose slots are those that have a matrix
        with pytest.raises(PrefixError, match=f"a prefix of merge '{name}' lacks {tensor}"):
            KINDS[name].check(slots, {other: value for other, value in extras.items() if other != tensor})


def test_a_memory_without_a_matrix_is_refused() -> None:
    with pytest.raises(PrefixError, match=r"a prefix of merge 'memory' lacks <slot>\.memory"):
        MEMORY.check({}, {})


@pytest.mark.parametrize("name", KINDS)
def test_keys_are_there_exactly_where_the_kind_has_them(name) -> None:
    extras = MADE[name][1]
    if KINDS[name].has_keys:
        with pytest.raises(PrefixError, match="needs at least one slot"):
            KINDS[name].check({}, extras)
    else:
        with pytest.raises(PrefixError, match=f"{name} has no keys"):
            KINDS[name].check(SLOTS, extras)


@pytest.mark.parametrize(
    ("flag", "names"),
    [
        ("is_cache", {"softmax"}),
        ("passes_as_cache", {"softmax", "conditioned", "embedding"}),
        ("has_keys", {"softmax", "gated", "conditioned"}),
        ("has_tokens", {"softmax", "gated", "conditioned", "embedding"}),
        ("inserted", {"embedding"}),
        ("reads_input", {"conditioned"}),
    ],
)
def test_what_is_true_of_which_kind(flag, names) -> None:
    assert {name for name, kind in KINDS.items() if getattr(kind, flag)} == names


def test_only_a_cache_calls_itself_one() -> None:
    assert [name for name, kind in KINDS.items() if kind.export == "key/value cache"] == ["softmax"]


@pytest.mark.parametrize("name", KINDS)
def test_training_goes_on_from_the_same_kind_and_conditioned_from_a_cache_too(name) -> None:
    continued = {other for other in KINDS if KINDS[name].continues(KINDS[other])}
    assert continued == ({"conditioned", "softmax"} if name == "conditioned" else {name})


def test_lengths_and_embeddings() -> None:
    lengths = {name: kind.length(*MADE[name]) for name, kind in KINDS.items()}
    assert lengths == {"softmax": 5, "gated": 5, "memory": 0, "conditioned": 5, "embedding": 5}
    inserted = EMBEDDING.embeddings(MADE["embedding"][1])
    assert inserted is MADE["embedding"][1]["embeddings"]
    assert all(KINDS[name].embeddings(MADE[name][1]) is None for name in KINDS if name != "embedding")


def test_additions_are_those_of_gates_and_memories() -> None:
    slots, extras = MADE["gated"]
    gated = GATED.additions(slots, extras)
    assert list(gated) == list(SLOTS)
    assert gated["decoder.1"] == Gated(*slots["decoder.1"], extras["decoder.1.gate"])
    extras = MADE["memory"][1]
    assert MEMORY.additions({}, extras)["decoder.0"] == Memory(extras["decoder.0.memory"])
    for name in ("softmax", "conditioned", "embedding"):
        assert KINDS[name].additions(*MADE[name]) == {}


@pytest.mark.parametrize("name", ["conditioned", "embedding"])
def test_a_base_with_embeddings_of_another_width_is_refused(name) -> None:
    tensor = {"conditioned": "condition.inner", "embedding": "embeddings"}[name]
    with pytest.raises(PrefixMismatchError, match=rf"prefix's {tensor} has width 8, tiny's embeddings 9"):
        KINDS[name].require_fit(*MADE[name], KNOWN, WIDTH + 1, "tiny")


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("gated", {"num_heads": HEADS + 1}),
        ("memory", {"num_heads": HEADS + 1}),
        ("memory", {"key_dim": KEY + 1}),
        ("memory", {"value_dim": VALUE + 1}),
    ],
)
def test_a_base_with_other_heads_is_refused_by_slot(name, other) -> None:
    known = KNOWN | {"decoder.1": SimpleNamespace(**(vars(SHAPE) | other))}
    with pytest.raises(PrefixMismatchError, match=rf"decoder\.1: the prefix's {name} tensor is .*, tiny needs"):
        KINDS[name].require_fit(*MADE[name], known, WIDTH, "tiny")


@pytest.mark.parametrize("name", ["softmax", "gated", "memory"])
def test_what_reads_no_embeddings_fits_any_width(name) -> None:
    KINDS[name].require_fit(*MADE[name], KNOWN, WIDTH + 1, "tiny")


def test_only_a_conditioned_prefix_is_made_for_an_input() -> None:
    one, other = (CONDITIONED.for_input(*MADE["conditioned"], torch.randn(WIDTH)) for _ in range(2))
    for name, (key, value) in SLOTS.items():
        assert (one[name].key.shape, one[name].value.shape) == (key.shape, value.shape)
        assert not torch.allclose(one[name].key, other[name].key)
    silent = {name: torch.zeros_like(tensor) for name, tensor in NETWORK.items()}
    unchanged = CONDITIONED.for_input(SLOTS, silent, torch.randn(WIDTH))
    assert all(torch.equal(unchanged[name].key, SLOTS[name].key) for name in SLOTS)
    for kind in (SOFTMAX, GATED, MEMORY, EMBEDDING):
        with pytest.raises(PrefixError, match=f"'{kind.name}' is the same for each input"):
            kind.for_input(*MADE[kind.name], torch.randn(WIDTH))
