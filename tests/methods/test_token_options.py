"""Options for all methods: slots, lengths per layer, frozen first tokens, dropout, own learning rates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import foreword
from foreword.errors import ConfigError
from foreword.init.selection import matching_slots, select_slots
from foreword.methods import get_method
from foreword.methods.direct import DirectProducer
from foreword.methods.token_options import with_token_options
from foreword.training.checkpoint import list_checkpoints
from method_cases import CASES, case_id, moved, producer_of, row_for, start_of
from parity_helpers import run
from tiny import random_batch, relative, tiny_base, trained_like
from training_helpers import copy_until, equal, final_state, settings, tensors, write_rows

NAMES = ["encoder.0", "encoder.1", "decoder.0", "decoder.1", "decoder.2", "cross.0"]


def test_patterns() -> None:
    assert matching_slots("decoder", NAMES, "slots") == NAMES[2:5]
    assert matching_slots("decoder.1", NAMES, "slots") == ["decoder.1"]
    assert matching_slots("decoder.0-1", NAMES, "slots") == NAMES[2:4]
    for pattern, message in (
        ("decoder.7", "names no slot"),
        ("layer.1", "must be like"),
        ("decoder.2-0", "names no slot"),
    ):
        with pytest.raises(ConfigError, match=f"slots: .*{message}"):
            matching_slots(pattern, NAMES, "slots")


def test_slots_and_lengths_cut_the_first_tokens() -> None:
    base = tiny_base()
    whole = trained_like(base, 6)
    cut = select_slots(whole, ("decoder.0", "decoder.2"), {"decoder": 4, "decoder.2": 2})
    assert {name: kv.length for name, kv in cut.slots.items()} == {"decoder.0": 4, "decoder.2": 2}
    assert torch.equal(cut.slots["decoder.0"].key, whole.slots["decoder.0"].key[:, :4])
    assert cut.position_offset == 6
    for lengths, message in (
        ({"decoder": 7}, "must be 1 to 6"),
        ({"decoder": 0}, "must be 1 to 6"),
        ({"cross": 2}, "no slot"),
    ):
        with pytest.raises(ConfigError, match=f"lengths: .*{message}"):
            select_slots(whole, (), lengths)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_trained_with_some_slots_and_lengths(tmp_path, case) -> None:
    base, rows = tiny_base(), write_rows(tmp_path)
    lengths = {} if case[0] == "memory" else {"decoder.2": 2}
    changes = {"slots": ("decoder.0", "decoder.2"), "lengths": lengths, "options": case[1], "steps": 8}
    result = foreword.train(base, settings(rows, method=case[0], **changes))
    names = set(result.prefix.slots) or set(result.prefix.additions)
    assert names == {"decoder.0", "decoder.2"}
    if result.prefix.slots:
        assert {name: kv.length for name, kv in result.prefix.slots.items()} == {"decoder.0": 4, "decoder.2": 2}
    assert result.validation_loss < result.history[0]["validation_loss"]


@pytest.mark.parametrize("case", [case for case in CASES if case[0] != "memory"], ids=case_id)
def test_frozen_tokens_stay_as_they_start(case) -> None:
    base = tiny_base()
    start, producer = start_of(base, case[0]), producer_of(base, case)
    frozen = with_token_options(producer, start, 2, 0.0)
    moved(producer)
    for name, kv in frozen.finish().slots.items():
        for now, first in zip(kv, start.prefix.slots[name], strict=True):
            assert torch.equal(now[:, :2], first[:, :2])
            assert relative(now[:, 2:], first[:, 2:]) > 1e-3
    loss = run_rows(base, frozen)
    assert any(grad is not None for grad in torch.autograd.grad(loss, list(producer.parameters()), allow_unused=True))


def run_rows(base, producer):
    from method_cases import run_rows as rows

    return rows(base, producer(), random_batch([8, 5])).logsumexp(-1).sum()


def test_frozen_tokens_of_a_conditioned_prefix_ignore_the_input() -> None:
    base = tiny_base()
    case = ("conditioned", {"rank": 3, "hidden": 8})
    start, producer = start_of(base, case[0]), producer_of(base, case)
    frozen = with_token_options(producer, start, 2, 0.0)
    moved(producer)
    row = row_for(base, frozen.finish())
    for name, kv in row.slots.items():
        assert torch.equal(kv.key[:, :2], start.prefix.slots[name].key[:, :2])


def test_a_dropped_token_takes_its_conditioning_along() -> None:
    base = tiny_base()
    case = ("conditioned", {"rank": 3, "hidden": 8})
    start, producer = start_of(base, case[0]), moved(producer_of(base, case))
    dropping = with_token_options(producer, start, 0, 0.5)
    whole = row_for(base, producer())
    torch.manual_seed(3)
    for _ in range(8):
        row = row_for(base, dropping())
        kept, every = row.slots["decoder.1"].key, whole.slots["decoder.1"].key
        for token in range(kept.shape[1]):
            assert any(torch.allclose(kept[:, token], every[:, other], atol=1e-5) for other in range(6))


@pytest.mark.parametrize("name", ["prompt", "ptuning"])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_frozen_embeddings_give_the_keys_that_are_saved(kind, name) -> None:
    """So that a run goes on from them; the tokens behind them see what is saved."""
    base = tiny_base(kind)
    options = {"hidden": 24} if name == "ptuning" else {}
    start, producer = start_of(base, name), producer_of(base, (name, options))
    frozen = with_token_options(producer, start, 2, 0.0)
    moved(producer)
    prefix = frozen.finish()
    found = prefix.extras["embeddings"]
    assert start.embeddings is not None
    assert torch.equal(found[:2], start.embeddings[:2])
    assert relative(found[2:], start.embeddings[2:]) > 0.01
    if kind == "llama":
        captured = base.capture(inputs_embeds=found[None])
        assert all(relative(kv.key, captured[slot].key) < 1e-5 for slot, kv in prefix.slots.items())


def test_frozen_embeddings_stay_too() -> None:
    base = tiny_base("bert")
    start = start_of(base, "prompt")
    producer = producer_of(base, ("prompt", {}))
    frozen = with_token_options(producer, start, 2, 0.0)
    moved(producer)
    found = frozen.finish().extras["embeddings"]
    assert start.embeddings is not None
    assert torch.equal(found[:2], start.embeddings[:2])
    assert relative(found[2:], start.embeddings[2:]) > 0.01


def test_dropout_leaves_whole_tokens_out_of_training_steps_alone() -> None:
    base = tiny_base()
    start, inner = start_of(base, "direct"), producer_of(base, ("direct", {}))
    assert isinstance(inner, DirectProducer)
    producer = with_token_options(inner, start, 1, 0.5)
    torch.manual_seed(0)
    lengths = []
    for _ in range(50):
        prefix = producer()
        kept = prefix.slots["decoder.0"].key
        lengths.append(kept.shape[1])
        assert {kv.length for kv in prefix.slots.values()} == {kept.shape[1]}
        assert torch.equal(kept[:, 0], start.prefix.slots["decoder.0"].key[:, 0])
        columns = [any(torch.equal(kept[:, i], inner.keys[0][:, j]) for j in range(6)) for i in range(kept.shape[1])]
        assert all(columns)
    assert 2.5 < sum(lengths) / 50 < 4.5  # one is frozen, five stay with probability a half
    assert min(lengths) >= 1
    assert producer.finish().length == 6
    with torch.no_grad():
        assert producer().length == 6


def test_dropout_runs_resume_bit_identically(tmp_path) -> None:
    base, rows = tiny_base(), write_rows(tmp_path)
    changes: dict[str, Any] = {"dropout": 0.4, "frozen_tokens": 1, "steps": 8, "checkpoint_every": 2, "accumulation": 2}
    whole = foreword.train(base, settings(rows, "whole", **changes))
    without = foreword.train(base, settings(rows, "without", **(changes | {"dropout": 0.0})))
    assert not equal(tensors(whole.prefix), tensors(without.prefix))
    copy = copy_until(whole.run, rows / "copy", 4)
    resumed = foreword.train(base, settings(rows, resume=str(copy), **changes))
    assert equal(final_state(copy), final_state(whole.run))
    assert equal(tensors(resumed.prefix), tensors(whole.prefix))


def test_gates_have_their_own_learning_rate(tmp_path) -> None:
    base, rows = tiny_base(), write_rows(tmp_path)
    changes: dict[str, Any] = {
        "method": "gated",
        "options": {"gate_lr": 0.2},
        "steps": 1,
        "warmup": 0,
        "scheduler": "constant",
    }
    run_folder = foreword.train(base, settings(rows, **changes)).run
    first, last = (load_file(path / "state.safetensors") for path in list_checkpoints(run_folder / "checkpoints"))
    gates = [float((last[name] - first[name]).abs().max()) for name in first if name.startswith("producer.gates")]
    assert gates == pytest.approx([0.2] * 3, rel=1e-2)


def test_what_has_no_meaning_is_named(tmp_path) -> None:
    base, rows = tiny_base(), write_rows(tmp_path)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"method": "memory", "frozen_tokens": 1}, "frozen_tokens: a prefix of merge 'memory' has no tokens"),
        ({"method": "memory", "dropout": 0.5}, "dropout: a virtual token can't be left out"),
        ({"frozen_tokens": 4}, "frozen_tokens: 4 of 4 virtual tokens"),
        ({"slots": ("encoder",)}, "slots: 'encoder' names no slot"),
        ({"slots": ("decoder.0",), "lengths": {"decoder.1": 2}}, "lengths: 'decoder.1' names no slot"),
        ({"lengths": {"0": 2}}, "lengths: '0' must be like"),
        ({"method": "memory", "lengths": {"decoder": 2}}, "lengths: a memory has no virtual tokens"),
        ({"template": "{input} [V]*4="}, r"template: has 4 places .* direct inserts none"),
    ]
    for changes, message in wrong:
        with pytest.raises(ConfigError, match=message):
            foreword.train(base, settings(rows, "never", **changes))
        assert not (rows / "never").exists()
    with pytest.raises(ConfigError, match="dropout: must be below 1"):
        settings(rows, dropout=1.0)
    with pytest.raises(ConfigError, match=r"dropout: .*tiny-bloom"):
        foreword.train(tiny_base("bloom"), settings(rows, "never", dropout=0.5))
    with pytest.raises(ConfigError, match="method: gated can't be attached to tiny-bloom"):
        foreword.train(tiny_base("bloom"), settings(rows, "never", method="gated"))
    windowed = tiny_base("mistral", sliding_window=8)
    with pytest.raises(ConfigError, match=r"template: has 3 places .* length is 4"):
        foreword.train(windowed, settings(rows, "never", method="prompt", template="{input} [V]*3="))
    assert not (rows / "never").exists()


def test_gated_and_memory_are_refused_on_the_cache_route() -> None:
    from foreword.errors import PrefixMismatchError
    from foreword.methods import Start

    base = tiny_base("bloom")
    for name in ("gated", "memory"):
        method = get_method(name)
        prefix = method.start(Start(trained_like(base, 4), None, base), method.parse_options({}))()
        with pytest.raises(PrefixMismatchError, match=f"merge '{name}' can't be attached"):
            run(base, prefix, random_batch([4]))
