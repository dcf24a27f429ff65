"""Attaches that begin, end, fail or are collected at the worst moment."""

from __future__ import annotations

import contextvars
import gc
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from context_helpers import in_thread, together, traces
from foreword.attach import contexts, function
from foreword.attach.changing import changing_models
from foreword.base import Base
from foreword.errors import AttachError
from parity_helpers import CONTROL, TOLERANCE, outputs, run
from tiny import random_batch, relative, tiny_base, trained_like


@pytest.fixture
def impatient() -> Iterator[None]:
    """Threads that are switched as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("impatient")
def test_attributes_read_while_classes_change() -> None:
    base = tiny_base("llama")
    prefix = trained_like(base, 4)
    over = threading.Event()

    def attach() -> int:
        try:
            for _ in range(400):
                with base.attach(prefix):
                    pass
        finally:
            over.set()
        return 0

    def read() -> int:
        reads = 0
        while not over.is_set():
            assert base.model.config._attn_implementation == "sdpa"
            assert callable(base.model.generate)
            reads += 1
        return reads

    _, *reads = together([attach, read, read])
    assert min(reads) > 100


@pytest.mark.usefixtures("impatient")
def test_a_switch_while_a_carried_call_meets_new_shapes() -> None:
    base = tiny_base("llama")
    prefix = trained_like(base, 5)

    def call() -> None:
        with torch.no_grad():
            for rows in range(1, 12):
                base.model(input_ids=torch.ones(rows, 3 + rows % 5, dtype=torch.long), use_cache=False)

    for _ in range(3):
        with base.attach(prefix):
            thread = threading.Thread(target=base.carry(call))
            thread.start()
            while thread.is_alive():
                contextvars.copy_context().run(base.switch, prefix)
            thread.join()


def test_an_install_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even while its traceback is kept; another context attaches as ever."""
    base, batch = tiny_base("llama"), random_batch([7])
    prefix = trained_like(base, 4)
    with torch.no_grad():
        expected = run(base, prefix, batch)

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    def attached() -> torch.Tensor:
        with torch.no_grad():
            return run(base, prefix, batch)

    with monkeypatch.context() as patch:
        patch.setattr(function, "install", fail)
        with pytest.raises(KeyboardInterrupt) as raised:
            base.attach(prefix).__enter__()
    assert traces(base.model) == []
    assert torch.equal(in_thread(attached), expected)
    assert torch.equal(attached(), expected)
    assert raised.traceback
    assert traces(base.model) == []


def test_a_block_that_is_collected_while_another_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    base, batch = tiny_base("llama"), random_batch([7])
    prefix = trained_like(base, 4)
    with torch.no_grad():
        plain, expected = outputs(base.model, batch), run(base, prefix, batch)

        def keep() -> None:
            """Leave a context in a cycle, as a failed task leaves its own."""
            with base.attach(prefix):
                cycle: list[object] = [contextvars.copy_context()]
                cycle.append(cycle)

        class Collecting(contexts.Block):
            def __init__(self, *args) -> None:
                gc.collect()
                super().__init__(*args)

        gc.collect()
        keep()
        assert traces(base.model) != []
        monkeypatch.setattr(contexts, "Block", Collecting)
        assert torch.equal(run(base, prefix, batch), expected)
        assert traces(base.model) == []
        assert torch.equal(outputs(base.model, batch), plain)


def test_a_generator_whose_block_ends_on_another_thread() -> None:
    """The thread in which it began is plain again, and the model has no hooks."""
    base, batch = tiny_base("llama"), random_batch([7])
    prefix = trained_like(base, 4)
    with torch.no_grad():
        plain, expected = outputs(base.model, batch), run(base, prefix, batch)

    def values() -> torch.Tensor:
        with torch.no_grad():
            return outputs(base.model, batch)

    def parts() -> Iterator[torch.Tensor]:
        with base.attach(prefix):
            yield values()

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        generator = parts()
        assert torch.equal(one.submit(next, generator).result(), expected)
        assert other.submit(next, generator, None).result() is None
        assert torch.equal(one.submit(values).result(), plain)
        assert traces(base.model) == []

        def attached() -> torch.Tensor:
            with torch.no_grad():
                return run(base, prefix, batch)

        assert torch.equal(one.submit(attached).result(), expected)


def test_a_model_is_freed_though_something_was_attached() -> None:
    """Also where the stack is the model itself."""
    for kind in ("llama", "vit"):
        base = tiny_base(kind)
        with base.attach(trained_like(base, 4)):
            pass
        model = weakref.ref(base.model)
        del base
        gc.collect()
        assert model() is None, kind


def test_models_that_share_a_config_attach_one_at_a_time() -> None:
    one = tiny_base("llama")
    other = Base(type(one.model)(one.model.config))
    prefix = trained_like(one, 4)
    with one.attach(prefix), pytest.raises(AttachError, match="config it shares"):
        other.attach(None).__enter__()
    with other.attach(None):
        pass
    assert traces(one.model) == traces(other.model) == []


def test_many_nested_blocks_that_end_in_the_order_they_began() -> None:
    base = tiny_base("llama", num_hidden_layers=1)
    prefix = trained_like(base, 2)
    blocks = [base.attach(prefix) for _ in range(1200)]
    for block in blocks:
        block.__enter__()
    for block in blocks:
        block.__exit__(None, None, None)
    assert traces(base.model) == []


@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_a_step_is_compiled_while_others_attach_and_leave(kind: str) -> None:
    base, ids = tiny_base(kind), torch.arange(12).view(2, 6)
    prefix, over = trained_like(base, 5), threading.Event()
    batch = {"input_ids": ids}
    with torch.no_grad():
        plain, expected = outputs(base.model, batch), run(base, prefix, batch)
    torch._dynamo.reset()
    compiled = torch.compile(base.model.__call__, backend="eager", dynamic=False)

    def compile_plain() -> torch.Tensor:
        try:
            with torch.no_grad():
                return compiled(**batch, use_cache=False).logits
        finally:
            over.set()

    def attach() -> None:
        with torch.no_grad():
            while not over.is_set():
                run(base, prefix, batch)

    found, _ = together([compile_plain, attach])
    with torch.no_grad(), base.attach(prefix):
        outputs(base.model, batch)
        attached = compiled(**batch, use_cache=False).logits
    torch._dynamo.reset()
    assert relative(found, plain) < TOLERANCE
    assert relative(attached, expected) < TOLERANCE
    assert relative(expected, plain) > CONTROL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_forked_while_another_thread_holds_the_lock() -> None:
    base = tiny_base("llama")
    prefix = trained_like(base, 4)
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with changing_models():
            held.set()
            go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        with base.attach(prefix):
            os._exit(0)
    go.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
