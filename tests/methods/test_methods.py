"""Every registered method: it starts at its initialisation, trains, counts its parameters, and finishes as plain tensors."""

from __future__ import annotations

import pytest
import torch

from foreword.errors import ConfigError
from foreword.methods import METHODS, get_method
from foreword.models.loading import empty_model
from foreword.models.slots import find_slots
from parity_helpers import run
from tiny import random_batch, relative, tiny_base, trained_like

OPTIONS = {"mlp": {"hidden": 24}}


def start(name: str):
    torch.manual_seed(0)
    base = tiny_base()
    initial = trained_like(base, 6)
    method = get_method(name)
    producer = method.start(initial, 64, method.parse_options(OPTIONS.get(name, {})))
    return base, initial, method, producer


@pytest.mark.parametrize("name", METHODS)
def test_starts_exactly_at_the_initial_prefix(name) -> None:
    _, initial, _, producer = start(name)
    prefix = producer()
    for slot, kv in initial.slots.items():
        assert torch.equal(prefix.slots[slot].key, kv.key)
        assert torch.equal(prefix.slots[slot].value, kv.value)
    assert prefix.position_offset == initial.position_offset


@pytest.mark.parametrize("name", METHODS)
def test_finished_prefix_has_the_logits_of_the_training_form(name) -> None:
    base, initial, _, producer = start(name)
    optimizer = torch.optim.AdamW(producer.parameters(), lr=0.05)
    batch = random_batch([8, 5])
    for _ in range(3):
        optimizer.zero_grad()
        run(base, producer(), batch).logsumexp(-1).sum().backward()
        optimizer.step()
    training = run(base, producer(), batch)
    finished = producer.finish()
    assert torch.equal(run(base, finished, batch), training)
    assert all(not tensor.requires_grad for _, tensor in finished.tensors())
    assert relative(run(base, initial, batch), training) > 0.01
    before = {name: tensor.clone() for name, tensor in finished.tensors()}
    for parameter in producer.parameters():
        parameter.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in finished.tensors())


@pytest.mark.parametrize("name", METHODS)
def test_parameter_count_is_the_formulas(name) -> None:
    base, _, method, producer = start(name)
    options = method.parse_options(OPTIONS.get(name, {}))
    assert method.count(base.slots, 6, 64, options) == sum(p.numel() for p in producer.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_gets_a_gradient(name) -> None:
    base, _, _, producer = start(name)
    optimizer = torch.optim.SGD(producer.parameters(), lr=1.0)
    for _ in range(2):  # the MLP's last layer starts at zero, so what lies before it moves from the second step on
        optimizer.zero_grad()
        run(base, producer(), random_batch([8, 5])).logsumexp(-1).sum().backward()
        optimizer.step()
    for parameter_name, parameter in producer.named_parameters():
        assert float(parameter.grad.abs().sum()) > 0, parameter_name


def test_direct_on_gpt2_medium() -> None:
    from transformers import GPT2Config

    slots = find_slots(empty_model(GPT2Config(n_embd=1024, n_layer=24, n_head=16))).slots
    assert get_method("direct").count(slots, 100, 1024, None) == 4_915_200


def test_unknown_methods_and_options() -> None:
    with pytest.raises(ConfigError, match="choose from direct, mlp"):
        get_method("lora")
    with pytest.raises(ConfigError, match="hidden"):
        get_method("mlp").parse_options({"hiden": 3})
    with pytest.raises(ConfigError, match="hidden: must be 1 or more"):
        get_method("mlp").parse_options({"hidden": 0})
