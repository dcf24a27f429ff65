"""What must not change an answer: padding, company in the batch, recomputation, caches, what was attached before."""

from __future__ import annotations

import threading

import pytest
import torch

from foreword.attention.inject import IMPLEMENTATION
from foreword.errors import AttachError, BatchMismatchError, RecomputeError
from parity_helpers import TOLERANCE, gradients, run
from tiny import ARCHITECTURES, EOS, PAD, SLIDING, random_batch, relative, tiny_base, tiny_model, trained_like

NEW = 8
CASES = [(kind, {}) for kind in ARCHITECTURES] + [(kind, changes) for kind, changes in SLIDING.items()]
NAMES = [kind + ("-window8" if changes else "") for kind, changes in CASES]


def generate(base, prefix, batch, backend="auto", **options):
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": PAD, "eos_token_id": EOS} | options
    with torch.no_grad(), base.attach(prefix, backend=backend):
        return base.model.generate(**batch, **settings)


@pytest.mark.parametrize(("kind", "changes"), CASES, ids=NAMES)
def test_padding_changes_no_token(kind, changes) -> None:
    """20 prompts: left-padded in one batch, alone, and teacher-forced in one right-padded forward."""
    base = tiny_base(kind, **changes)
    prefix = trained_like(base, 6)
    sizes = [3 + (5 * index) % 14 for index in range(20)]
    left = random_batch(sizes, "left")
    width = left["input_ids"].shape[1]
    together = generate(base, prefix, left)[:, width:]
    sequences = []
    for row, size in enumerate(sizes):
        prompt = left["input_ids"][row : row + 1, width - size :]
        alone = generate(base, prefix, {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)})
        assert alone[0, size:].tolist() == _until_end(together[row].tolist(), len(alone[0]) - size)
        sequences.append(alone[0])
    padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=PAD)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    mask = (torch.arange(padded.shape[1])[None] < lengths[:, None]).long()
    with torch.no_grad():
        chosen = run(base, prefix, {"input_ids": padded, "attention_mask": mask}).argmax(-1)
    for row, size in enumerate(sizes):
        assert chosen[row, size - 1 : lengths[row] - 1].tolist() == sequences[row][size:].tolist()
    plain = generate(base, None, left)[:, width:]
    assert not torch.equal(plain, together), "the prefix makes no difference, so this test could not fail"


def _until_end(tokens: list[int], length: int) -> list[int]:
    return tokens[:length]


@pytest.mark.parametrize("backend", ["auto", "math"])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "mistral"])
def test_mixed_rows_equal_separate_runs(kind, backend) -> None:
    base = tiny_base(kind, **SLIDING.get(kind, {}))
    a, b = trained_like(base, 5, seed=1, grad=True), trained_like(base, 17, seed=2, grad=True)
    rows = [a, b, None, a]
    batch = random_batch([9, 12, 7, 10], "left")
    logits = run(base, rows, batch, backend)
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))
    tensors = [part for prefix in (a, b) for kv in prefix.slots.values() for part in kv]
    real = batch["attention_mask"].unsqueeze(-1)
    together = torch.autograd.grad((logits * weight * real).sum(), tensors)
    apart = [torch.zeros_like(tensor) for tensor in tensors]
    for row, prefix in enumerate(rows):
        size = int(batch["attention_mask"][row].sum())
        single = {name: value[row : row + 1, -size:] for name, value in batch.items()}
        own = run(base, prefix, single, backend)
        assert relative(logits[row, -size:], own[0]) < TOLERANCE
        if prefix is not None:
            found = torch.autograd.grad((own * weight[row : row + 1, -size:]).sum(), tensors, allow_unused=True)
            apart = [total if part is None else total + part for total, part in zip(apart, found, strict=True)]
    for one, other in zip(together, apart, strict=True):
        assert relative(one, other) < TOLERANCE
    assert relative(run(base, [a, a, None, a], batch, backend)[1], logits[1]) > 100 * TOLERANCE


def enable_checkpointing(model, reentrant: bool) -> None:
    # Transformers before 5.20 has only the older name
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    model.train()


@pytest.mark.parametrize(("kind", "changes"), CASES, ids=NAMES)
@pytest.mark.parametrize("backward", ["inside", "outside", "under another attach"])
def test_activation_checkpointing(kind, changes, backward) -> None:
    """Same loss and gradients, also when backward recomputes after the attach has ended."""
    base = tiny_base(kind, **changes)
    prefix, other, batch = (
        trained_like(base, 6, grad=True),
        trained_like(base, 4, seed=9),
        random_batch([11, 4, 8]),
    )
    expected = run(base, prefix, batch)
    expected_gradients = gradients(expected, batch, prefix)
    enable_checkpointing(base.model, reentrant=False)
    for module in base.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for name in ("attention_dropout", "dropout"):
        for module in base.model.modules():
            if isinstance(module.__dict__.get(name), float):
                setattr(module, name, 0.0)
    with base.attach(prefix):
        logits = base.model(**batch, use_cache=False).logits
        if backward == "inside":
            found = gradients(logits, batch, prefix)
    if backward == "outside":
        found = gradients(logits, batch, prefix)
    elif backward == "under another attach":
        with base.attach(other):
            found = gradients(logits, batch, prefix)
    assert relative(logits, expected) < TOLERANCE
    assert relative(found, expected_gradients) < TOLERANCE
    assert base.model.config._attn_implementation != IMPLEMENTATION


def test_a_reference_policy_inside_a_checkpointed_step() -> None:
    """The plain base within an attach, without gradients, while layers checkpoint: no prefix leaks into it."""
    base = tiny_base("llama")
    prefix, batch = trained_like(base, 6, grad=True), random_batch([11, 4])
    plain = run(base, None, batch)
    enable_checkpointing(base.model, reentrant=False)
    with base.attach(prefix):
        base.model(**batch, use_cache=False)
        with base.attach(None), torch.no_grad():
            assert relative(base.model(**batch, use_cache=False).logits, plain) < TOLERANCE


def test_reentrant_checkpointing_is_refused() -> None:
    base = tiny_base("llama")
    prefix = trained_like(base, 4, grad=True)
    enable_checkpointing(base.model, reentrant=True)
    with base.attach(prefix), pytest.raises(RecomputeError, match="use_reentrant"):
        base.model(**random_batch([5]), use_cache=False)


OPTIONS = {
    "dynamic": {},
    "no cache": {"use_cache": False},
    "static": {"cache_implementation": "static"},
    "beam search": {"num_beams": 3},
    "beams returned": {"num_beams": 4, "num_return_sequences": 2},
    "samples": {"do_sample": True, "num_return_sequences": 2, "temperature": 1.5},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "assisted": {"assistant_model": "other"},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("kind", "changes"), CASES, ids=NAMES)
def test_generation_equals_the_reference(kind, changes, options) -> None:
    """Same tokens as the reference, for one prefix and for mixed rows, wherever the plain base can do it."""
    settings = dict(OPTIONS[options])
    single = options in ("prompt lookup", "assisted")  # Transformers takes one row there
    base = tiny_base(kind, **changes)
    if "assistant_model" in settings:
        settings["assistant_model"] = tiny_model(kind, seed=5, **changes)
    batch = random_batch([12] if single else [12, 7, 10], "left")
    a, b = trained_like(base, 6, seed=1), trained_like(base, 9, seed=2)

    def tokens(prefix, backend):
        torch.manual_seed(11)
        return generate(base, prefix, batch, backend, **settings)

    try:
        torch.manual_seed(11)
        base.model.generate(**batch, max_new_tokens=NEW, pad_token_id=PAD, eos_token_id=EOS, **settings)
    except (ValueError, RuntimeError, NotImplementedError, AttributeError, IndexError) as error:
        pytest.skip(f"the plain base can't: {error}")
    for prefix in (a,) if single else (a, [a, None, b]):
        fast, slow = tokens(prefix, "auto"), tokens(prefix, "reference")
        assert torch.equal(fast, slow)
        assert not torch.equal(fast, tokens(None, "auto"))


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


def test_detach_restores_everything() -> None:
    base = tiny_base("llama")
    batch, prefix = random_batch([9, 5]), trained_like(base, 4)
    before = base.model(**batch).logits
    hooks = _hooks(base.model)
    attributes = [set(vars(module)) for module in base.model.modules()]
    implementation = base.model.config._attn_implementation
    assert not torch.equal(run(base, prefix, batch), before)
    with pytest.raises(KeyError, match="on purpose"), base.attach(prefix):
        raise KeyError("on purpose")
    for _ in range(3):
        run(base, prefix, batch)
    assert torch.equal(base.model(**batch).logits, before)
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


def test_a_second_thread_on_the_same_base_is_refused() -> None:
    base = tiny_base("llama")
    prefix = trained_like(base, 4)
    raised: list[BaseException] = []

    def work() -> None:
        try:
            with base.attach(prefix):
                pass
        except AttachError as error:
            raised.append(error)

    with base.attach(prefix):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(raised) == 1
    assert "another thread" in str(raised[0])


def test_threads_that_race_leave_the_base_whole() -> None:
    base = tiny_base("llama")
    prefix, batch = trained_like(base, 4), random_batch([5])
    before = base.model(**batch).logits
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        for _ in range(50):
            try:
                with base.attach(prefix):
                    pass
            except AttachError:
                continue

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert base.model.config._attn_implementation != IMPLEMENTATION
    assert torch.equal(base.model(**batch).logits, before)


def test_rows_that_do_not_go_with_the_batch() -> None:
    base = tiny_base("llama")
    a = trained_like(base, 4)
    with base.attach([a, None]), pytest.raises(BatchMismatchError, match=r"2 prefixes .* 3 rows"):
        base.model(**random_batch([5, 4, 3]))
