"""What must not change an answer: what was attached before, other threads, inference mode. See also test_rows,
test_checkpointing and test_decoding, which run over every architecture."""

from __future__ import annotations

import threading

import pytest
import torch

from foreword.attach.function import IMPLEMENTATION
from foreword.errors import BatchMismatchError
from parity_helpers import NEW, TOLERANCE, generate, make_batch, outputs, run
from tiny import EOS, random_batch, relative, tiny_base, trained_like


def test_inference_mode() -> None:
    base = tiny_base("llama")
    prefix, batch = trained_like(base, 6), random_batch([9, 5], "left")
    expected = generate(base, prefix, batch)
    with torch.inference_mode():
        assert torch.equal(generate(base, prefix, batch), expected)


def test_generation_equals_past_key_values() -> None:
    """The reference of the reference: greedy tokens with a cache filled by hand."""
    from transformers import DynamicCache

    base = tiny_base("llama")
    prefix, batch = trained_like(base, 6), random_batch([10])
    ours = generate(base, prefix, batch)[0, 10:].tolist()
    cache = DynamicCache([tuple(part[None] for part in kv) for kv in prefix.slots.values()])
    tokens, position, found = batch["input_ids"], 6, []
    with torch.no_grad():
        for _ in range(NEW):
            positions = torch.arange(position, position + tokens.shape[1])[None]
            logits = base.model(tokens, position_ids=positions, past_key_values=cache).logits
            position += tokens.shape[1]
            tokens = logits[:, -1:].argmax(-1)
            found.append(int(tokens))
            if found[-1] == EOS:
                break
    assert ours == found


@pytest.mark.parametrize("kind", ["llama", "t5", "albert", "vit", "bloom", "gpt_oss", "jamba", "gemma4_text"])
def test_detach_restores_everything(kind) -> None:
    base = tiny_base(kind)
    batch, prefix = make_batch(base, [9, 5]), trained_like(base, 4)
    before = outputs(base.model, batch)
    hooks = _hooks(base.model)
    attributes = [set(vars(module)) for module in base.model.modules()]
    implementation = base.model.config._attn_implementation
    assert not torch.equal(run(base, prefix, batch), before)
    with pytest.raises(KeyError, match="on purpose"), base.attach(prefix):
        raise KeyError("on purpose")
    last = base.model.get_submodule(base.slots[-1].module)
    failing = last.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyError("inside")))
    with pytest.raises(KeyError, match="inside"):
        run(base, prefix, batch)
    failing.remove()
    for _ in range(3):
        run(base, prefix, batch)
    assert torch.equal(outputs(base.model, batch), before)
    assert _hooks(base.model) == hooks
    assert [set(vars(module)) for module in base.model.modules()] == attributes
    assert base.model.config._attn_implementation == implementation


def _hooks(model) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def test_inner_attach_replaces_the_outer() -> None:
    base = tiny_base("llama")
    batch = random_batch([9, 5])
    a, b = trained_like(base, 4, seed=1), trained_like(base, 8, seed=2)
    only_a, only_b, plain = (run(base, prefix, batch) for prefix in (a, b, None))
    with base.attach(a):
        with base.attach(b):
            assert torch.equal(base.model(**batch, use_cache=False).logits, only_b)
        with base.attach(None):
            assert torch.equal(base.model(**batch, use_cache=False).logits, plain)
        assert torch.equal(base.model(**batch, use_cache=False).logits, only_a)
    assert relative(plain, base.model(**batch).logits) < TOLERANCE


def test_two_threads_with_two_bases() -> None:
    bases = [tiny_base("llama", seed) for seed in (0, 1)]
    prefixes = [trained_like(base, 4 + 3 * number) for number, base in enumerate(bases)]
    batch = random_batch([9, 5])
    expected = [run(base, prefix, batch) for base, prefix in zip(bases, prefixes, strict=True)]
    wrong: list[str] = []

    def work(number: int) -> None:
        for _ in range(20):
            if not torch.equal(run(bases[number], prefixes[number], batch), expected[number]):
                wrong.append(f"thread {number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_threads_that_race_leave_the_base_whole() -> None:
    base = tiny_base("llama")
    prefix, batch = trained_like(base, 4), random_batch([5])
    before = base.model(**batch).logits
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        for _ in range(50):
            with base.attach(prefix):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert base.model.config._attn_implementation != IMPLEMENTATION
    assert torch.equal(base.model(**batch).logits, before)


def test_a_mask_changed_in_place_counts_anew() -> None:
    """Also for inference tensors, which keep no version."""
    base = tiny_base("llama")
    prefix, ids = trained_like(base, 4), random_batch([6])["input_ids"]
    with torch.inference_mode(), base.attach(prefix):
        mask = torch.ones(6, 6, dtype=torch.bool).tril()[None, None].clone()
        base.model(ids, attention_mask=mask)
        mask[:, :, :, 0] = False
        mask[:, :, 0, 0] = True
        changed = base.model(ids, attention_mask=mask).logits
        assert torch.equal(changed, base.model(ids, attention_mask=mask.clone()).logits)


def test_rows_that_do_not_go_with_the_batch() -> None:
    base = tiny_base("llama")
    a = trained_like(base, 4)
    with base.attach([a, None]), pytest.raises(BatchMismatchError, match=r"2 prefixes .* 3 rows"):
        base.model(**random_batch([5, 4, 3]))
