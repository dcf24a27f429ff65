"""Evaluation: metrics against hand-made figures and by-hand losses."""

from __future__ import annotations

import json
import math

import pytest
import torch

import foreword
from foreword.base.rendering import Renderer
from foreword.tasks import text_metrics as metrics
from foreword.tasks.lm import collate, target_losses
from rows_helpers import load_examples, mean_loss
from tiny import tiny_base, trained_like

TEXTS = ["the cat sat on the mat", "a dog"]
REFERENCES = [["the cat sat on the mat", "there is a cat"], ["one dog barks"]]


def test_text_metrics() -> None:
    assert metrics.exact_match(TEXTS, REFERENCES) == 50.0
    assert metrics.rouge_l(TEXTS, REFERENCES) == pytest.approx(100 * (1 + 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)) / 2)
    score, signature = metrics.bleu(TEXTS[:1], REFERENCES[:1])
    assert score == pytest.approx(100)
    assert "version" in signature
    assert metrics.bleu(TEXTS, REFERENCES)[0] < 100
    assert metrics.chrf(TEXTS[:1], [["the cat sat on the mat"]])[0] == pytest.approx(100)


@pytest.fixture
def file(tmp_path):
    rows = [
        {"input": "one", "target": "eins"},
        {"input": "a longer input here", "references": ["zwei", "deux"]},
        {"input": "x", "target": "an answer of some length"},
    ]
    path = tmp_path / "valid.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_loss_is_the_mean_over_target_tokens(file) -> None:
    """Row by row, with full logits and no padding."""
    base = tiny_base()
    prefix = trained_like(base, 5)
    examples, _ = load_examples(str(file), Renderer(base.tokenizer, "{input}:"))
    total, count = 0.0, 0
    for example in examples:
        ids = torch.tensor([[*example.prompt_ids, *example.target_ids]])
        with torch.no_grad(), base.attach(prefix):
            log_probabilities = base.model(ids).logits[0].log_softmax(-1)
        first = len(example.prompt_ids)
        total -= sum(float(log_probabilities[i - 1, int(ids[0, i])]) for i in range(first, ids.shape[1]))
        count += len(example.target_ids)
    loss, tokens = mean_loss(base, examples, prefix, batch_size=2)
    assert tokens == count
    assert loss == pytest.approx(total / count, rel=1e-5)
    assert loss != pytest.approx(mean_loss(base, examples, None, 2)[0], rel=1e-3)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "granite", "cohere2", "gpt2", "gpt_neox", "opt"])
def test_losses_at_targets_equal_full_logits(kind) -> None:
    """The model's own final softcap and scaling survive computing only some logits."""
    base = tiny_base(kind)
    renderer = Renderer(base.tokenizer, "{input}:")
    examples = [_example(renderer, "abc", "de"), _example(renderer, "a", "longer")]
    batch = collate(examples, base)
    losses = target_losses(base, batch)
    logits = base.model(batch.inputs["input_ids"], use_cache=False).logits.flatten(0, 1)[batch.positions]
    assert torch.allclose(losses, torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none"), atol=1e-4)
    assert base.model(batch.inputs["input_ids"]).logits.shape[:2] == batch.inputs["input_ids"].shape


def _example(renderer, prompt, target):
    from foreword.data import Example

    text = renderer.prompt({"input": prompt})
    return Example(
        tuple(renderer.prompt_ids(text)), tuple(renderer.target_ids(text, target)), text, target, (target,), "x:1"
    )


def test_evaluate(file) -> None:
    base = tiny_base()
    prefix = trained_like(base, 5).with_record("direct", {"template": "{input}="})
    seen: list[tuple[str, int, int]] = []
    config = foreword.EvalConfig(data=str(file), max_new_tokens=5, batch_size=2)
    result = foreword.evaluate(base, config, prefix, lambda *update: seen.append(update))
    assert list(result.metrics) == ["loss", "perplexity", "bleu", "chrf", "rouge_l", "exact_match"]
    assert result.metrics["perplexity"] == pytest.approx(math.exp(result.metrics["loss"]))
    assert result.rows == len(result.texts) == 3
    assert set(result.signatures) == {"bleu", "chrf"}
    assert seen == [("loss", 2, 3), ("loss", 3, 3), ("answers", 2, 3), ("answers", 3, 3)]
    inputs = [json.loads(line)["input"] for line in file.read_text().splitlines()]
    assert base.generate(inputs, prefix, max_new_tokens=5) == result.texts
    only = foreword.evaluate(base, foreword.EvalConfig(data=str(file), metrics=("loss",), rows=2), prefix)
    assert (list(only.metrics), only.rows, only.texts) == (["loss"], 2, [])
