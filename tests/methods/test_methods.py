"""Every registered method: it starts at its initialisation, trains, counts its parameters, and finishes as plain tensors."""

from __future__ import annotations

import pytest
import torch

from foreword.errors import ConfigError
from foreword.init.text import token_prefix
from foreword.methods import METHODS, Start, get_method
from foreword.models.loading import empty_model
from foreword.models.slots import find_slots
from parity_helpers import run
from tiny import random_batch, relative, tiny_base, trained_like

OPTIONS = {"mlp": {"hidden": 24}, "ptuning": {"hidden": 24}, "lowrank": {"rank": 3}, "shared": {"width": 3}}
CASES = [(name, OPTIONS.get(name, {})) for name in METHODS] + [("ptuning", {"hidden": 24, "encoder": "mlp"})]
EMBEDDED = ("prompt", "ptuning")  # what they train are input embeddings


def start(case):
    torch.manual_seed(0)
    base, (name, options) = tiny_base(), case
    ids = torch.randint(3, 250, (6,))
    embeddings = base.model.get_input_embeddings()(ids).detach()
    initial = token_prefix(ids.tolist(), base, "text") if name in EMBEDDED else trained_like(base, 6)
    method = get_method(name)
    producer = method.start(Start(initial, embeddings, base), method.parse_options(options))
    return base, initial, method, producer


def case_id(case) -> str:
    return "-".join((case[0], *map(str, case[1].values())))


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_starts_exactly_at_the_initial_prefix(case) -> None:
    _, initial, _, producer = start(case)
    prefix = producer()
    for slot, kv in initial.slots.items():
        assert torch.equal(prefix.slots[slot].key, kv.key)
        assert torch.equal(prefix.slots[slot].value, kv.value)
    assert prefix.position_offset == initial.position_offset


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_finished_prefix_has_the_logits_of_the_training_form(case) -> None:
    base, initial, _, producer = start(case)
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


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_parameter_count_is_the_formulas(case) -> None:
    base, _, method, producer = start(case)
    options = method.parse_options(case[1])
    assert method.count(base.slots, 6, 64, options) == sum(p.numel() for p in producer.parameters())


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_every_parameter_gets_a_gradient(case) -> None:
    base, _, _, producer = start(case)
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
    with pytest.raises(ConfigError, match="choose from direct, mlp, shared, lowrank, prompt, ptuning"):
        get_method("lora")
    with pytest.raises(ConfigError, match="hidden"):
        get_method("mlp").parse_options({"hiden": 3})
    with pytest.raises(ConfigError, match="hidden: must be 1 or more"):
        get_method("mlp").parse_options({"hidden": 0})
