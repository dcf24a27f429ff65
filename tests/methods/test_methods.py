"""Every registered method: it starts where it says, trains, counts its parameters, and finishes as plain tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foreword.base.loading import empty_model
from foreword.errors import ConfigError
from foreword.methods import METHODS, get_method
from foreword.models.slots import find_slots
from method_cases import CASES, case_id, moved, producer_of, run_rows, start_of
from tiny import random_batch, relative, tiny_base

STEPS = 3


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_starts_at_the_initial_prefix_or_as_the_plain_base(case) -> None:
    base = tiny_base()
    initial, prefix = start_of(base, case[0]).prefix, producer_of(base, case)()
    if get_method(case[0]).neutral:
        batch = random_batch([8, 5])
        assert torch.equal(run_rows(base, prefix, batch), run_rows(base, None, batch))
        return
    for slot, kv in initial.slots.items():
        assert torch.equal(prefix.slots[slot].key, kv.key)
        assert torch.equal(prefix.slots[slot].value, kv.value)
    assert prefix.position_offset == initial.position_offset


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.neutral])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5", "vit", "jamba"])
def test_an_exact_no_op_at_the_start(name, kind) -> None:
    """Logits bit-identical to the detached base, and no longer so once a gate or a matrix has moved."""
    from parity_helpers import make_batch, outputs, run
    from tiny import DECODERS, trained_like

    base = tiny_base(kind)
    method, batch = METHODS[name], make_batch(base, [9, 5], "left" if kind in DECODERS else "right")
    start = method_start(base, trained_like(base, 6))
    producer = method.start(start, method.parse_options({}))
    before = outputs(base.model, batch)
    assert torch.equal(run(base, producer(), batch), before)
    moved(producer)
    assert relative(run(base, producer(), batch), before) > 0.01


def method_start(base, prefix):
    from foreword.methods import Start

    return Start(prefix, None, base)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_finished_prefix_has_the_logits_of_the_training_form(case) -> None:
    base = tiny_base()
    producer, batch = producer_of(base, case), random_batch([8, 5])
    first = run_rows(base, producer(), batch)
    optimizer = torch.optim.AdamW(producer.parameters(), lr=0.05)
    for _ in range(STEPS):
        optimizer.zero_grad()
        run_rows(base, producer(), batch).logsumexp(-1).sum().backward()
        optimizer.step()
    training = run_rows(base, producer(), batch)
    finished = producer.finish()
    assert torch.equal(run_rows(base, finished, batch), training)
    assert all(not tensor.requires_grad for _, tensor in finished.tensors())
    assert relative(first, training) > 0.01
    before = {name: tensor.clone() for name, tensor in finished.tensors()}
    for parameter in producer.parameters():
        parameter.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in finished.tensors())


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_parameter_count_is_the_formulas(case) -> None:
    base = tiny_base()
    method, producer = get_method(case[0]), producer_of(base, case)
    options = method.parse_options(case[1])
    assert method.count(base.slots, 6, 64, options) == sum(p.numel() for p in producer.parameters())


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_every_parameter_gets_a_gradient(case) -> None:
    base = tiny_base()
    producer = producer_of(base, case)
    optimizer = torch.optim.SGD(producer.parameters(), lr=1.0)
    for _ in range(2):  # what starts at zero lets gradients through from the second step on
        optimizer.zero_grad()
        run_rows(base, producer(), random_batch([8, 5])).logsumexp(-1).sum().backward()
        optimizer.step()
    for parameter_name, parameter in producer.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert float(parameter.grad.abs().sum()) > 0, parameter_name


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_groups_hold_every_parameter_once(case) -> None:
    producer = producer_of(tiny_base(), case)
    grouped = [parameter for group in producer.groups() for parameter in group.parameters]
    assert sorted(map(id, grouped)) == sorted(map(id, producer.parameters()))


def test_direct_on_gpt2_medium() -> None:
    from transformers import GPT2Config

    slots = find_slots(empty_model(GPT2Config(n_embd=1024, n_layer=24, n_head=16))).slots
    assert get_method("direct").count(slots, 100, 1024, None) == 4_915_200


def test_unknown_methods_and_options() -> None:
    with pytest.raises(ConfigError, match=f"choose from {', '.join(METHODS)}"):
        get_method("lora")
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("mlp", {"hiden": 3}, "hidden"),
        ("mlp", {"hidden": 0}, "hidden: must be 1 or more"),
        ("ptuning", {"hidden": 3}, "even number"),
        ("gated", {"gate_lr": 0.0}, "gate_lr: must be above 0"),
        ("conditioned", {"rank": 0}, "rank: must be 1 or more"),
    ]
    for name, options, message in wrong:
        with pytest.raises(ConfigError, match=message):
            get_method(name).parse_options(options)
