"""`prompt` and `ptuning`: the keys and values are those of the embeddings in front, forward and backward."""

from __future__ import annotations

import pytest
import torch

import foreword
from foreword.errors import ConfigError
from foreword.methods import Start, get_method
from parity_helpers import CONTROL, TOLERANCE, enable_checkpointing, make_batch, run
from tiny import relative, tiny_base, trained_like
from training_helpers import settings, write_rows

FULL = ["llama", "qwen3", "gpt2", "opt", "gpt_neox", "smollm3", "deepseek_v3", "bloom", "gptj", "falcon"]


def make_producer(base, name="prompt", length=6, **options):
    torch.manual_seed(0)
    ids = torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(5))
    embeddings = base.model.get_input_embeddings()(ids).detach()
    method = get_method(name)
    return method.start(Start(trained_like(base, length), embeddings, base), method.parse_options(options))


@pytest.mark.parametrize("name", ["prompt", "ptuning"])
@pytest.mark.parametrize("kind", FULL)
def test_equals_prepending_the_embeddings(kind, name) -> None:
    """Logits of the real tokens, and the gradient of every parameter."""
    base = tiny_base(kind)
    producer, batch = make_producer(base, name), make_batch(base, [12, 12])
    with torch.no_grad():
        for parameter in producer.parameters():  # away from the start, where ptuning's encoder is silent
            parameter.add_(0.1 * torch.randn(parameter.shape))
    parameters = list(producer.parameters())
    embeddings = producer.prompt()
    tokens = base.model.get_input_embeddings()(batch["input_ids"])
    whole = torch.cat([embeddings[None].expand(2, -1, -1), tokens], dim=1)
    expected = base.model(inputs_embeds=whole, use_cache=False).logits[:, len(embeddings) :]
    logits = run(base, producer(), {"input_ids": batch["input_ids"]})
    assert relative(logits, expected) < TOLERANCE
    assert relative(run(base, None, {"input_ids": batch["input_ids"]}), expected) > CONTROL
    pairs = [torch.autograd.grad(out.logsumexp(-1).mean(), parameters) for out in (logits, expected)]
    for ours, theirs in zip(*pairs, strict=True):
        assert relative(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("name", ["prompt", "ptuning"])
def test_under_activation_checkpointing(name) -> None:
    base = tiny_base("llama")
    producer, batch = make_producer(base, name), make_batch(base, [9, 5])
    expected = torch.autograd.grad(
        run(base, producer(), batch).logsumexp(-1).mean(), list(producer.parameters()), allow_unused=True
    )
    enable_checkpointing(base.model, reentrant=False)
    found = torch.autograd.grad(
        run(base, producer(), batch).logsumexp(-1).mean(), list(producer.parameters()), allow_unused=True
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_random_keys_have_no_embeddings(tmp_path) -> None:
    with pytest.raises(ConfigError, match="text or vocab"):
        foreword.train(tiny_base(), settings(write_rows(tmp_path), init="random", method="prompt"))


def test_a_run_goes_on_from_its_embeddings(tmp_path) -> None:
    base, rows = tiny_base(), write_rows(tmp_path)
    first = foreword.train(base, settings(rows, "first", method="prompt", steps=10, lr=0.02))
    assert first.prefix.extras["embeddings"].shape == (4, 64)
    second = foreword.train(
        base,
        settings(
            rows, "second", method="ptuning", steps=1, init="prefix", init_prefix=str(first.run / "prefix"), lr=1e-4
        ),
    )
    assert second.history[0]["validation_loss"] == pytest.approx(first.validation_loss, rel=1e-4)
    direct = foreword.train(base, settings(rows, "direct", steps=1))
    with pytest.raises(ConfigError, match="made by prompt or ptuning"):
        foreword.train(
            base, settings(rows, "third", method="prompt", init="prefix", init_prefix=str(direct.run / "prefix"))
        )
