"""Language modelling on encoder–decoders: losses are the model's own, training learns, slots can be chosen."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

import foreword
from foreword.data import Reading
from foreword.errors import UnsupportedModelError
from foreword.tasks import LanguageModelling, TaskSettings, make_task, summed_loss
from foreword.tasks.lm import require_decoder
from rows_helpers import item_of
from tiny import PAD, relative, tiny_base, trained_like
from training_helpers import settings, write_rows


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_losses_are_those_of_the_models_own_labels(kind) -> None:
    base = tiny_base(kind)
    base.model.config.decoder_start_token_id = PAD
    task = make_task(base, "lm", TaskSettings("{input}"))
    items = [item_of(task, {"input": text, "target": target}) for text, target in (("abc", "x"), ("d", "longer"))]
    found = task.losses(None, items).split([len(item.target_ids) for item in items])
    for item, own in zip(items, found, strict=True):
        expected = base.model(input_ids=torch.tensor([item.prompt_ids]), labels=torch.tensor([item.target_ids])).loss
        if kind == "t5":  # whose labels are shifted by the same start token
            assert float(own.mean()) == pytest.approx(float(expected), rel=1e-4)
    prefix = trained_like(base, 5)
    assert relative(torch.cat(list(found)), task.losses(prefix, items)) > 0.01
    alone = torch.cat([task.losses(prefix, [item]) for item in items])
    assert relative(task.losses(prefix, items), alone) < 1e-4


@pytest.mark.parametrize("slots", [(), ("encoder",), ("decoder",), ("cross",), ("cross.1", "encoder.0-1")])
def test_an_encoder_decoder_learns_with_any_of_its_slots(tmp_path, slots) -> None:
    base, rows = tiny_base("t5"), write_rows(tmp_path)
    result = foreword.train(base, settings(rows, slots=slots, steps=30, lr=0.1))
    assert result.validation_loss < result.history[0]["validation_loss"] - 0.1
    named = {name.partition(".")[0] for name in result.prefix.slots}
    assert named == ({pattern.partition(".")[0] for pattern in slots} or {"encoder", "decoder", "cross"})
    request = foreword.EvalConfig(data=str(rows / "valid.jsonl"), prefix=str(result.run / "prefix"), max_new_tokens=4)
    measured = foreword.evaluate(base, request)
    assert measured.metrics["loss"] == pytest.approx(result.validation_loss, rel=1e-5)
    assert len(measured.texts) == 6


@pytest.mark.parametrize("method", ["prompt", "mlp", "conditioned", "gated", "memory"])
def test_an_encoder_decoder_learns_with_any_method(tmp_path, method) -> None:
    base, rows = tiny_base("t5"), write_rows(tmp_path)
    result = foreword.train(base, settings(rows, method=method, steps=30, lr=0.02))
    assert result.validation_loss < result.history[0]["validation_loss"] - 0.05


@pytest.mark.parametrize("kind", ["bert", "whisper", "vit"])
def test_what_does_not_continue_text_is_refused(kind) -> None:
    with pytest.raises(UnsupportedModelError, match="needs a decoder that reads text"):
        require_decoder(tiny_base(kind))


def test_the_summed_loss_does_not_depend_on_batches() -> None:
    base = tiny_base()
    task = make_task(base, "lm", TaskSettings("{input}="))
    items = [item_of(task, {"input": "q" * n, "target": "yes"}) for n in range(1, 8)]
    whole = summed_loss(task, items, None, 7)
    loss, count = summed_loss(task, items, None, 2)
    assert loss == pytest.approx(whole[0], rel=1e-5)
    assert count == whole[1]
    changed = [dataclasses.replace(items[0], target_ids=(3, 4)), *items[1:]]
    assert summed_loss(task, changed, None, 7)[0] != pytest.approx(whole[0], rel=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("chat", [False, True])
def test_rows_encoded_together_are_those_encoded_one_by_one(kind, chat, monkeypatch, tmp_path) -> None:
    base, file = tiny_base(kind, chat=chat), tmp_path / "rows.jsonl"
    if chat and kind == "t5":
        pytest.skip("no chat template")
    texts = ["a b", "ends in space ", "naïve ☃", "x\n", "</s>", "a b"]
    rows = [{"input": text, "target": other} for text in texts for other in ("y", " z", "é")]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"input": "no target"}, {"target": 3}]))
    task = LanguageModelling(base, TaskSettings())
    together, bad = task.load(str(file), Reading(max_bad_rows=2))
    assert task.renderer._known or task.rows.chat._known, "nothing was encoded ahead, so this test could not fail"
    monkeypatch.setattr(type(task), "ahead", lambda self, rows: None)
    task.renderer._known, task.rows.chat._known = {}, {}
    apart, same = task.load(str(file), Reading(max_bad_rows=2))
    assert together == apart
    assert bad == same
    assert len(bad) == 2
