"""Bases in bfloat16, float16 and int8 with float32 prefixes: parity, training, generation, attached the same way."""

from __future__ import annotations

import pytest
import torch

import foreword
from foreword.base import Base, loading
from foreword.errors import ConfigError
from parity_helpers import generate, make_batch, real, run
from tiny import byte_tokenizer, relative, tiny_base, tiny_model, trained_like
from training_helpers import settings, write_rows


@pytest.fixture
def folder(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_oss", "deepseek_v3", "t5", "bert", "bloom"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_float32_prefix_on_a_half_precision_base(kind, dtype) -> None:
    """As near to the float32 base as the plain half-precision base is; the gradient arrives in float32."""
    exact, base = tiny_base(kind), Base(tiny_model(kind, dtype=dtype), byte_tokenizer(), name=f"tiny-{kind}")
    with torch.no_grad():  # gentler weights: ×10 leaves half precision no digits
        for model in (exact.model, base.model):
            for parameter in model.parameters():
                if parameter.dim() >= 2:
                    parameter.mul_(0.3)
    prefix, batch = trained_like(exact, 6, grad=True), make_batch(exact, [9, 5])
    own = foreword.Prefix(prefix.slots, prefix.position_offset, base.fingerprint)
    plain = relative(real(run(base, None, batch), batch), real(run(exact, None, batch), batch))
    values = run(base, own, batch)
    assert values.dtype == dtype
    assert relative(real(values, batch), real(run(exact, prefix, batch), batch)) < max(3 * plain, 0.05)
    real(values, batch).float().square().mean().backward()
    for kv in own.slots.values():
        assert kv.key.grad is not None
        assert kv.key.grad.dtype == torch.float32
        assert kv.key.grad.isfinite().all()


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"dtype": "float16"}, {"quantise": "int8"}], ids=str)
def test_trains_and_generates(folder, tmp_path, options) -> None:
    base, rows = foreword.load(folder, device="cpu", **options), write_rows(tmp_path)
    before = base.weights_hash()
    config = settings(rows, steps=40, lr=0.03, activation_checkpointing=True)
    result = foreword.train(base, config)
    first = result.history[0]["validation_loss"]
    assert result.validation_loss < first - 0.5
    assert result.prefix.slots["decoder.0"].key.dtype == torch.float32
    assert base.weights_hash() == before
    assert len(base.generate(["t1", "t2"], [result.prefix, None], max_new_tokens=5)) == 2
    again = foreword.train(base, settings(rows, "again", steps=40, lr=0.03, activation_checkpointing=True))
    assert torch.equal(again.prefix.slots["decoder.1"].key, result.prefix.slots["decoder.1"].key)


def test_int8_is_near_the_base_and_keeps_its_invariants(folder) -> None:
    base, exact = foreword.load(folder, device="cpu", quantise="int8"), foreword.load(folder, device="cpu")
    assert base.fingerprint.quantisation == "int8"
    assert base.fingerprint.weights == exact.fingerprint.weights  # of the stored checkpoint, before any cast
    prefix, batch = trained_like(exact, 6), make_batch(exact, [9, 5, 7], "left")
    values = run(base, prefix, batch)
    assert 1e-4 < relative(real(values, batch), real(run(exact, prefix, batch), batch)) < 0.2
    assert relative(real(run(base, prefix, batch, "reference"), batch), real(values, batch)) < 1e-4
    mixed = run(base, [prefix, None, prefix], batch)
    assert relative(mixed[1], run(base, None, batch)[1]) < 1e-4
    together = generate(base, prefix, batch)
    alone = generate(base, prefix, {name: value[:1] for name, value in batch.items()})
    assert torch.equal(together[:1], alone)


@pytest.mark.smollm2
def test_int8_on_the_real_model(smollm2) -> None:
    base = foreword.load("smollm2-135m", device="cpu", quantise="int8")
    prefix = foreword.Prefix.from_text("The capital of France is Paris. The capital of Italy is Rome.", base)
    for kv in prefix.slots.values():
        kv.key.requires_grad_()
    ids = base.tokenizer(" The capital of Spain is", return_tensors="pt").input_ids
    logits = run(base, prefix, {"input_ids": ids})
    assert relative(logits, run(smollm2, prefix, {"input_ids": ids})) < 0.2
    assert base.tokenizer.decode(logits[0, -1].argmax()) == " Madrid"
    logits.logsumexp(-1).sum().backward()
    gradient = prefix.slots["decoder.0"].key.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"quantise": "int3"}, ConfigError, "int8, bnb-8bit, bnb-4bit"),
        ({"quantise": "bnb-4bit"}, ConfigError, "needs a CUDA device"),
    ],
)
def test_what_can_not_be_quantised(folder, options, error, said) -> None:
    with pytest.raises(error, match=said):
        loading.load(folder, device="cpu", **options)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["bnb-8bit", "bnb-4bit", "int8"])
def test_quantised_on_cuda(folder, tmp_path, kind) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if kind != "int8":
        pytest.importorskip("bitsandbytes")
    base = foreword.load(folder, device="cuda", dtype="bfloat16", quantise=kind)
    result = foreword.train(base, settings(write_rows(tmp_path), steps=40, lr=0.03))
    assert result.validation_loss < result.history[0]["validation_loss"] - 0.5
    assert len(base.generate(["t1"], result.prefix, max_new_tokens=5)) == 1
