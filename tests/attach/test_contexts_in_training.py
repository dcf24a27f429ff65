"""Backward, recomputation and compiled steps find the attachment of their own forward, whatever others attach."""

from __future__ import annotations

import asyncio

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from context_helpers import in_thread, together, traces
from parity_helpers import CONTROL, TOLERANCE, enable_checkpointing, gradients, run
from tiny import random_batch, relative, tiny_base, trained_like


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_trainings_on_one_base(checkpointing: bool) -> None:
    base, batch = tiny_base("llama"), random_batch([9, 5])
    prefixes = [trained_like(base, length, seed=length, grad=True) for length in (4, 6)]
    expected = [gradients(run(base, prefix, batch), batch, prefix) for prefix in prefixes]
    if checkpointing:
        enable_checkpointing(base.model, reentrant=False)
    before = traces(base.model)

    def train(number: int) -> list[torch.Tensor]:
        prefix = prefixes[number]
        found = [gradients(run(base, prefix, batch), batch, prefix) for _ in range(4)]  # backward after the block
        with base.attach(prefix):
            return [*found, gradients(base.model(**batch, use_cache=False).logits, batch, prefix)]

    def plainly() -> list[torch.Tensor]:
        return [base.model(**batch, use_cache=False).logits for _ in range(8)]

    *found, plains = together([lambda: train(0), lambda: train(1), plainly])
    for number in (0, 1):
        assert all(relative(values, expected[number]) < TOLERANCE for values in found[number])
    assert all(torch.equal(values, plains[0]) for values in plains)
    assert relative(expected[0][:1], expected[1][:1]) > CONTROL
    assert traces(base.model) == before


def test_a_recomputation_on_another_thread() -> None:
    """As autograd's device threads do it: in a context in which nothing is attached, or something else is."""
    base, batch = tiny_base("llama"), random_batch([9, 5])
    prefix, other = trained_like(base, 5, grad=True), trained_like(base, 3, seed=2)
    expected = gradients(run(base, prefix, batch), batch, prefix)
    enable_checkpointing(base.model, reentrant=False)
    with base.attach(prefix):
        values = [base.model(**batch, use_cache=False).logits for _ in range(2)]
    assert relative(in_thread(lambda: gradients(values[0], batch, prefix)), expected) < TOLERANCE

    def under_another() -> torch.Tensor:
        with base.attach(other):
            return gradients(values[1], batch, prefix)

    assert relative(in_thread(under_another), expected) < TOLERANCE


def test_a_compiled_step_serves_all_contexts() -> None:
    """Two graphs: one for the plain base, one for any prefix of a length; tasks and threads each get their own."""
    base, ids = tiny_base("llama"), torch.arange(12).view(2, 6)
    prefixes = [trained_like(base, 5, seed=seed) for seed in (1, 2, 3)]
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(base.model.__call__, backend=counter, fullgraph=True, dynamic=False)

    def step() -> torch.Tensor:
        return compiled(input_ids=ids, use_cache=False).logits

    with torch.no_grad():
        plain = base.model(input_ids=ids, use_cache=False).logits
        expected = [run(base, prefix, {"input_ids": ids}) for prefix in prefixes]

        async def task(number: int) -> list[torch.Tensor]:
            with base.attach(prefixes[number]):
                found = [base.model(input_ids=ids, use_cache=False).logits]  # plans are made outside compiled code
                for _ in range(3):
                    await asyncio.sleep(0)
                    found.append(step())
                return found

        async def plainly() -> list[torch.Tensor]:
            await asyncio.sleep(0)
            return [step()]

        async def main() -> list[list[torch.Tensor]]:
            return await asyncio.gather(*map(task, range(3)), plainly())

        *found, (plain_found,) = asyncio.run(main())
        graphs = counter.frame_count
        with base.attach(prefixes[0]):
            base.model(input_ids=ids, use_cache=False)
            assert relative(in_thread(lambda: _plain(step)), plain) < TOLERANCE
            assert relative(in_thread(base.carry(lambda: _plain(step))), expected[0]) < TOLERANCE
    for number, values in enumerate(found):
        assert all(relative(value, expected[number]) < TOLERANCE for value in values)
    assert relative(plain_found, plain) < TOLERANCE
    assert min(relative(value, plain) for value in expected) > CONTROL
    assert (graphs, counter.frame_count) == (2, 2)
    torch._dynamo.reset()


def _plain(step) -> torch.Tensor:
    with torch.no_grad():
        return step()
