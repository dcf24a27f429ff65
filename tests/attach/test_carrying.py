"""How an attachment gets to another thread, and what a model and its config still are in between."""

from __future__ import annotations

import copy
import gc
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest
import torch
from transformers import TextIteratorStreamer

from context_helpers import together, traces
from foreword.base.frozen import Prefixes
from foreword.errors import AttachError
from parity_helpers import outputs, run
from tiny import random_batch, tiny_base, trained_like


@pytest.mark.parametrize("inside", [True, False])
def test_streaming_as_transformers_documents_it(inside: bool) -> None:
    """The thread gets the prefix, also when it outlives the block."""
    base = tiny_base("llama")
    prefix, ids = trained_like(base, 5), random_batch([7])["input_ids"]
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    plain = base.model.generate(ids, **options)
    with base.attach(prefix):
        expected = base.model.generate(ids, **options)
    assert not torch.equal(expected, plain)
    streamer = TextIteratorStreamer(base.tokenizer, skip_prompt=True)
    with ExitStack() as block:
        block.enter_context(base.attach(prefix))
        thread = threading.Thread(target=base.model.generate, args=(ids,), kwargs={**options, "streamer": streamer})
        if inside:
            thread.start()
            text = "".join(streamer)
        else:
            block.close()
            thread.start()
            assert torch.equal(base.model.generate(ids, **options), plain)
            text = "".join(streamer)
    thread.join()
    assert text == base.tokenizer.decode(expected[0, ids.shape[1] :])
    gc.collect()
    assert traces(base.model) == []


def test_texts_are_generated_side_by_side() -> None:
    base = tiny_base("llama")
    rows: list[Prefixes] = [trained_like(base, 5), [trained_like(base, 4, seed=2), None], None]

    def texts(prefix: Prefixes) -> list[str]:
        return base.generate(["one prompt", "a second, longer one"], prefix, max_new_tokens=8)

    def often(prefix: Prefixes) -> list[list[str]]:
        return [texts(prefix) for _ in range(4)]

    expected = [texts(prefix) for prefix in rows]
    jobs = [partial(often, prefix) for prefix in rows]
    assert together(jobs) == [[answers] * 4 for answers in expected]
    assert expected[0] != expected[2]


def test_the_class_of_a_model_still_has_its_generate() -> None:
    base = tiny_base("llama")
    own, signature = type(base.model), inspect.signature(base.model.generate)
    with base.attach(trained_like(base, 5)):
        assert type(base.model) is not own
        assert type(base.model).generate is own.generate
        assert type(base.model).__name__ == own.__name__
        assert base.model.generate.__self__ is base.model
        assert inspect.signature(base.model.generate) == signature
    encoder = tiny_base("bert")
    with encoder.attach(trained_like(encoder, 5)):
        assert not hasattr(encoder.model, "generate")


def test_a_bound_generate_follows_its_own_context() -> None:
    """What the caller has attached counts; else what was attached where it was looked up, as for `carry`."""
    base = tiny_base("llama")
    a, b, ids = trained_like(base, 5), trained_like(base, 4, seed=2), random_batch([7])["input_ids"]
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}

    def tokens(rows) -> torch.Tensor:
        with base.attach(rows):
            return base.model.generate(ids, **options)

    plain, of_a, of_b = base.model.generate(ids, **options), tokens(a), tokens(b)
    with base.attach(a):
        generate = base.model.generate
        base.switch(b)
        assert torch.equal(generate(ids, **options), of_b)
    assert torch.equal(base.model.generate(ids, **options), plain)
    assert torch.equal(generate(ids, **options), of_a)
    assert not any(torch.equal(one, other) for one, other in ((plain, of_a), (plain, of_b), (of_a, of_b)))


def test_carry_takes_an_attachment_to_any_thread() -> None:
    base, batch = tiny_base("llama"), random_batch([7])
    prefix, other = trained_like(base, 5), trained_like(base, 4, seed=2)
    with torch.no_grad():
        plain, expected = run(base, None, batch), run(base, prefix, batch)

    def answer(**more: bool) -> torch.Tensor:
        with torch.no_grad():
            return outputs(base.model, batch, **more)

    with ThreadPoolExecutor(2) as pool:
        with base.attach(prefix):
            carried = base.carry(answer)
            assert carried.__name__ == "answer"
            assert torch.equal(pool.submit(carried, use_cache=False).result(), expected)
            assert torch.equal(pool.submit(answer).result(), plain)
            base.switch(other)
        assert torch.equal(pool.submit(carried).result(), expected)
        assert torch.equal(pool.submit(answer).result(), plain)
    assert torch.equal(answer(), plain)
    assert traces(base.model) == []
    with pytest.raises(AttachError, match="nothing is attached"):
        base.carry(answer)


def test_copies_made_while_something_is_attached() -> None:
    """Those of a config are plain; a model has hooks on it, so it is not copied."""
    base = tiny_base("llama")
    config = base.model.config
    with base.attach(trained_like(base, 5)):
        for made in (copy.deepcopy(config), copy.copy(config)):
            assert type(made) is not type(config)
            assert made._attn_implementation == "sdpa"
            assert made == config
            assert config == made
        assert type(config).__name__ == "LlamaConfig"
        assert "foreword" not in str(config.to_dict())
        with pytest.raises(AttachError, match="end the attach before"):
            copy.deepcopy(base.model)
    assert type(made) is type(config)


def test_a_model_made_from_the_config_of_an_attached_one() -> None:
    base, batch = tiny_base("llama"), random_batch([7])
    with torch.no_grad():
        plain = outputs(base.model, batch)
        with base.attach(trained_like(base, 5)):
            type(base.model)(base.model.config)
        assert base.model.config._attn_implementation == "sdpa"
        assert torch.equal(outputs(base.model, batch), plain)
