"""What is attached belongs to a thread or an asyncio task."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import torch

from context_helpers import in_thread, together, traces
from foreword.attach.function import IMPLEMENTATION
from foreword.errors import AttachError
from parity_helpers import CONTROL, make_batch, outputs, run
from tiny import random_batch, relative, tiny_base, trained_like

ROUNDS = 12
KINDS = ("llama", "gpt2", "gemma2", "llama4_text", "qwen3_next", "bert", "albert", "t5", "bloom", "falcon")


@pytest.mark.parametrize("kind", KINDS)
def test_threads_attach_to_one_base_at_once(kind: str) -> None:
    """Three prefixes, explicit None, and a thread that chooses nothing, all through each other."""
    base = tiny_base(kind)
    batch = make_batch(base, [9, 5])
    prefixes = [trained_like(base, length, seed=length) for length in (4, 6, 7)]
    with torch.no_grad():
        plain = outputs(base.model, batch)
        expected = [run(base, prefix, batch) for prefix in (*prefixes, None)]

    def attached(number: int) -> list[torch.Tensor]:
        with torch.no_grad():
            return [run(base, (*prefixes, None)[number], batch) for _ in range(ROUNDS)]

    def plainly() -> list[torch.Tensor]:
        with torch.no_grad():
            return [outputs(base.model, batch) for _ in range(ROUNDS)]

    found = together([*(lambda number=number: attached(number) for number in range(4)), plainly])
    for number in range(4):
        assert all(torch.equal(values, expected[number]) for values in found[number])
    assert all(torch.equal(values, plain) for values in found[4])
    assert min(relative(expected[number], plain) for number in range(3)) > CONTROL
    assert traces(base.model) == []


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_plain_base_is_untouched_for_everybody_else(implementation: str) -> None:
    base = tiny_base("llama")
    base.model.set_attn_implementation(implementation)
    prefix, batch = trained_like(base, 5), random_batch([9, 5], "left")
    options = {"max_new_tokens": 4, "do_sample": False}
    plain, tokens = outputs(base.model, batch), base.model.generate(**batch, **options)
    with base.attach(prefix):
        assert base.model.config._attn_implementation == IMPLEMENTATION
        assert in_thread(lambda: base.model.config._attn_implementation) == implementation
        assert torch.equal(in_thread(lambda: outputs(base.model, batch)), plain)
        assert torch.equal(in_thread(lambda: base.model.generate(**batch, **options)), tokens)
        attentions = in_thread(lambda: base.model(**batch, output_attentions=implementation == "eager").attentions)
        assert (attentions is not None) == (implementation == "eager")
    assert base.model.config._attn_implementation == implementation


def test_a_plain_thread_meets_attaches_that_come_and_go() -> None:
    base = tiny_base("llama")
    prefix, batch = trained_like(base, 5), random_batch([7])
    with torch.no_grad():
        plain, with_prefix = outputs(base.model, batch), run(base, prefix, batch)
    over = threading.Event()

    def come_and_go() -> list[torch.Tensor]:
        try:
            with torch.no_grad():
                return [run(base, prefix, batch) for _ in range(150)]
        finally:
            over.set()

    def plainly() -> list[torch.Tensor]:
        found = []
        with torch.no_grad():
            while not over.is_set():
                found.append(outputs(base.model, batch))
        return found

    prefixed, *plains = together([come_and_go, plainly, plainly])
    assert all(torch.equal(values, with_prefix) for values in prefixed)
    assert all(torch.equal(values, plain) for found in plains for values in found)
    assert min(map(len, plains)) > 10, "the threads did not run side by side"


def test_tasks_of_an_event_loop() -> None:
    base, batch = tiny_base("llama"), random_batch([7])
    prefixes = [trained_like(base, length, seed=length) for length in (3, 5, 6)]
    with torch.no_grad():
        plain, expected = outputs(base.model, batch), [run(base, prefix, batch) for prefix in prefixes]

        async def attached(number: int) -> list[torch.Tensor]:
            with base.attach(prefixes[number]):
                found = []
                for _ in range(4):
                    await asyncio.sleep(0)
                    found.append(outputs(base.model, batch))
                base.switch(prefixes[number - 1])
                await asyncio.sleep(0)
                return [*found, outputs(base.model, batch)]

        async def plainly() -> list[torch.Tensor]:
            found = []
            for _ in range(5):
                await asyncio.sleep(0)
                found.append(outputs(base.model, batch))
            return found

        async def main() -> list[list[torch.Tensor]]:
            return await asyncio.gather(*(attached(number) for number in range(3)), plainly())

        *found, plains = asyncio.run(main())
    for number, values in enumerate(found):
        assert all(torch.equal(value, expected[number]) for value in values[:-1])
        assert torch.equal(values[-1], expected[number - 1])
    assert all(torch.equal(value, plain) for value in plains)
    assert traces(base.model) == []


def test_what_is_made_in_a_block_keeps_its_prefix_after_it() -> None:
    """A task that first runs after the block, `to_thread` during it; a switch in a task is that task's own."""
    base, batch = tiny_base("llama"), random_batch([7])
    prefix, other = trained_like(base, 5), trained_like(base, 4, seed=2)
    with torch.no_grad():
        plain, expected, switched = (run(base, rows, batch) for rows in (None, prefix, other))

    async def later(go: asyncio.Event) -> torch.Tensor:
        await go.wait()
        return outputs(base.model, batch)

    async def switching() -> torch.Tensor:
        base.switch(other)
        return outputs(base.model, batch)

    async def main() -> None:
        go = asyncio.Event()
        with base.attach(prefix):
            task = asyncio.create_task(later(go))
            assert torch.equal(await asyncio.create_task(switching()), switched)
            assert torch.equal(outputs(base.model, batch), expected)
            assert torch.equal(await asyncio.to_thread(outputs, base.model, batch), expected)
        go.set()
        assert torch.equal(outputs(base.model, batch), plain)
        assert torch.equal(await task, expected)

    with torch.no_grad():
        asyncio.run(main())
    gc.collect()
    assert traces(base.model) == []


def test_switch_needs_an_attach_of_its_own_context() -> None:
    base = tiny_base("llama")
    prefix = trained_like(base, 5)
    with base.attach(prefix), pytest.raises(AttachError, match="nothing is attached in this thread or task"):
        in_thread(lambda: base.switch(prefix))


def test_the_model_is_restored_while_an_exception_is_handled() -> None:
    """Its traceback keeps the frames of the call; the hooks must not stay with them."""
    base = tiny_base("llama")
    prefix = trained_like(base, 5)
    try:
        with base.attach(prefix):
            base.model(input_ids=torch.full((1, 3), 10**6))
    except IndexError:
        assert traces(base.model) == []
    else:
        pytest.fail("the ids are beyond the vocabulary")


def test_blocks_may_end_in_any_order_and_elsewhere() -> None:
    base, batch = tiny_base("llama"), random_batch([7])
    a, b = trained_like(base, 5), trained_like(base, 4, seed=2)
    with torch.no_grad():
        plain, of_b = run(base, None, batch), run(base, b, batch)
        first, second = base.attach(a), base.attach(b)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.equal(outputs(base.model, batch), of_b)
        second.__exit__(None, None, None)
        assert torch.equal(outputs(base.model, batch), plain)
        assert traces(base.model) == []
        elsewhere = base.attach(a)
        in_thread(elsewhere.__enter__)
        with base.attach(b):
            elsewhere.__exit__(None, None, None)
            assert torch.equal(outputs(base.model, batch), of_b)
        assert torch.equal(outputs(base.model, batch), plain)
    gc.collect()
    assert traces(base.model) == []


def test_an_async_generator_that_attaches() -> None:
    base, batch = tiny_base("llama"), random_batch([7])
    prefix = trained_like(base, 5)

    @asynccontextmanager
    async def adapted() -> AsyncIterator[None]:
        with base.attach(prefix):
            await asyncio.sleep(0)
            yield

    async def main() -> torch.Tensor:
        async with adapted():
            await asyncio.sleep(0)
            return outputs(base.model, batch)

    with torch.no_grad():
        assert torch.equal(asyncio.run(main()), run(base, prefix, batch))
    assert traces(base.model) == []


@pytest.mark.slow
def test_a_storm_of_contexts(capsys: pytest.CaptureFixture[str]) -> None:
    """Threads and event loops that attach, switch and leave, among plain ones: no call gets another one's prefix."""
    base, batch = tiny_base("llama"), random_batch([7])
    prefixes = [trained_like(base, length, seed=length) for length in (3, 4, 5, 6)]
    with torch.no_grad():
        plain, expected = outputs(base.model, batch), [run(base, prefix, batch) for prefix in prefixes]
    assert min(relative(value, plain) for value in expected) > CONTROL

    def plainly() -> list[bool]:
        with torch.no_grad():
            return [torch.equal(outputs(base.model, batch), plain) for _ in range(1000)]

    def attached(number: int) -> list[bool]:
        with torch.no_grad():
            return [torch.equal(run(base, prefixes[number], batch), expected[number]) for _ in range(500)]

    async def task(number: int) -> list[bool]:
        right = []
        for turn in range(100):
            with base.attach(prefixes[number]):
                await asyncio.sleep(0)
                right.append(torch.equal(outputs(base.model, batch), expected[number]))
                base.switch(prefixes[number - turn % 4])
                await asyncio.sleep(0)
                right.append(torch.equal(outputs(base.model, batch), expected[number - turn % 4]))
            right.append(torch.equal(outputs(base.model, batch), plain))
        return right

    async def tasks() -> list[bool]:
        return [right for found in await asyncio.gather(*map(task, range(4))) for right in found]

    def loop() -> list[bool]:
        with torch.no_grad():
            return asyncio.run(tasks())

    jobs: list[Callable[[], Any]] = [plainly, plainly, partial(attached, 0), partial(attached, 1), loop, loop]
    right = [outcome for found in together(jobs) for outcome in found]
    with capsys.disabled():
        print(f"\n{len(right):,} calls of 6 threads, 8 tasks in two of them: {right.count(False)} wrong")
    assert all(right)
    assert traces(base.model) == []
