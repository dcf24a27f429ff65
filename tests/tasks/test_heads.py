"""Tasks with heads on encoders, decoders and encoder–decoders: they learn, resume, save, and are measured rightly."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import foreword
from foreword.data import Reading
from foreword.errors import ConfigError
from foreword.tasks import TaskSettings, make_task
from foreword.tasks.classify import accuracy, macro_f1
from foreword.tasks.encode import pooled_states
from foreword.tasks.qa import normalised, word_f1
from foreword.tasks.token_cls import entity_f1
from foreword.training.checkpoint import list_checkpoints
from head_helpers import ROWS, config, write
from method_cases import moved, producer_of
from tiny import relative, tiny_base
from training_helpers import copy_until, equal, final_state, tensors, untimed

MEASURES = {
    "seq-cls": {"accuracy", "macro_f1"}, "token-cls": {"accuracy", "entity_f1"}, "multiple-choice": {"accuracy"},
    "qa": {"exact_match", "f1"},
}  # fmt: skip


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("kind", ["bert", "llama", "t5", "bart"])
def test_learns_saves_and_is_measured(tmp_path, task, kind) -> None:
    base, rows = tiny_base(kind), write(tmp_path, task)
    weights = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    result = foreword.train(base, config(rows, task=task))
    losses = [row["validation_loss"] for row in result.history if "validation_loss" in row]
    assert min(losses) < 0.8 * losses[0]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in base.model.state_dict().items())
    request = foreword.EvalConfig(data=str(rows / "valid.jsonl"), prefix=str(result.run / "prefix"))
    measured = foreword.evaluate(base, request)
    assert set(measured.metrics) == {"loss", *MEASURES[task]}
    assert measured.metrics["loss"] == pytest.approx(result.validation_loss, rel=1e-5)
    assert len(measured.texts) == 6
    without = foreword.evaluate(base, foreword.EvalConfig(data=request.data, head=str(result.run / "head")))
    assert without.metrics["loss"] != pytest.approx(measured.metrics["loss"], rel=1e-3), (
        "the prefix makes no difference"
    )


@pytest.mark.parametrize("method", ["direct", "prompt", "conditioned", "gated"])
def test_resume_is_bit_identical_with_a_head(tmp_path, method) -> None:
    base, rows = tiny_base("bert"), write(tmp_path, "seq-cls")
    changes = {"task": "seq-cls", "method": method, "steps": 6, "checkpoint_every": 3, "validate_every": 3}
    whole = foreword.train(base, config(rows, "whole", **changes))
    assert any(name.startswith("head.") for name in final_state(whole.run))
    copy = copy_until(whole.run, rows / "copy", 3)
    shutil.rmtree(copy / "head")
    resumed = foreword.train(base, config(rows, resume=str(copy), **changes))
    assert equal(final_state(copy), final_state(whole.run))
    assert equal(tensors(resumed.prefix), tensors(whole.prefix))
    assert untimed(resumed.history) == untimed(whole.history)
    assert (copy / "head" / "head.json").read_text() == (whole.run / "head" / "head.json").read_text()


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_a_row_scores_the_same_alone_and_padded_with_an_inserted_prompt(tmp_path, task, kind) -> None:
    """Virtual tokens and padding are neither pooled nor tagged nor chosen."""
    base, rows = tiny_base(kind), write(tmp_path, task)
    made = make_task(base, task, TaskSettings())
    with open(rows / "train.jsonl") as handle:
        made.learn(json.loads(line) for line in handle)
    items, _ = made.load(str(rows / "valid.jsonl"), Reading())
    for prefix in (
        moved(producer_of(base, ("direct", {}))).finish(),
        moved(producer_of(base, ("prompt", {}))).finish(),
    ):
        with torch.no_grad():
            together = made.losses(prefix, items)
            alone = torch.cat([made.losses(prefix, [item]) for item in items])
            plain = made.losses(None, items)
        assert relative(together, alone) < 1e-4
        assert relative(plain, alone) > 1e-3


def test_the_head_has_its_own_learning_rate(tmp_path) -> None:
    base, rows = tiny_base("bert"), write(tmp_path, "seq-cls")
    changes = {"task": "seq-cls", "steps": 1, "warmup": 0, "scheduler": "constant"}
    moves = []
    for rate in (1e-3, 1e-2):
        run = foreword.train(base, config(rows, f"at-{rate}", head_lr=rate, **changes)).run
        first, last = (load_file(path / "state.safetensors") for path in list_checkpoints(run / "checkpoints"))
        moved_by = {
            name: float((last[name] - first[name]).abs().max())
            for name in first
            if name.startswith(("producer", "head"))
        }
        moves.append(moved_by)
        assert moved_by["head.bias"] == pytest.approx(rate, rel=1e-2)
        assert moved_by["producer.keys.0"] == pytest.approx(0.05, rel=1e-2)


def test_one_prefix_for_several_data_sets_then_continued_for_one(tmp_path) -> None:
    base = tiny_base("bert")
    parts = {}
    for name, task in (("colours", "seq-cls"), ("people", "token-cls")):
        (tmp_path / name).mkdir()
        folder = write(tmp_path / name, task)
        parts[name] = {"task": task, "data": str(folder / "train.jsonl"), "validation": str(folder / "valid.jsonl")}
    changes = {"data": "", "validation": None, "mixture": parts}
    result = foreword.train(base, config(tmp_path, "together", **changes))
    losses = [row["validation_loss"] for row in result.history if "validation_loss" in row]
    assert min(losses) < 0.8 * losses[0]
    states = json.loads((result.run / "head" / "head.json").read_text())["tasks"]
    assert {name: state["task"] for name, state in states.items()} == {"colours": "seq-cls", "people": "token-cls"}
    prefix, head = str(result.run / "prefix"), str(result.run / "head")
    found = []
    for name in parts:
        request = foreword.EvalConfig(data=parts[name]["validation"], prefix=prefix, head=f"{head}:{name}")
        found.append(foreword.evaluate(base, request).metrics["loss"])
    assert sum(found) / 2 == pytest.approx(result.validation_loss, rel=1e-4)
    with pytest.raises(ConfigError, match=r"head: .* holds colours, people; name one"):
        foreword.evaluate(base, foreword.EvalConfig(data=parts["colours"]["validation"], prefix=prefix))
    more = {"task": "seq-cls", "init": "prefix", "init_prefix": prefix, "init_head": f"{head}:colours", "steps": 3}
    alone = {"data": parts["colours"]["data"], "validation": parts["colours"]["validation"]}
    continued = foreword.train(base, config(tmp_path, "alone", **alone, **more, prefix_dtype="float32"))
    assert continued.history[0]["validation_loss"] == pytest.approx(found[0], rel=1e-4)
    with pytest.raises(ConfigError, match="init_head: was trained for the classes"):
        foreword.train(base, config(tmp_path, "wrong", **alone, **(more | {"init_head": f"{head}:people"})))


def test_a_head_on_states_that_are_projected() -> None:
    base = tiny_base("opt", word_embed_proj_dim=32)
    task = make_task(base, "seq-cls", TaskSettings())
    task.learn([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    assert task.losses(None, [task.item({"text": "a", "label": "x"}, "here")]).shape == (1,)


def test_measures_of_known_answers() -> None:
    assert accuracy([1, 2, 3, 3], [1, 2, 3, 4]) == 75.0
    assert macro_f1([0, 0, 1, 1], [0, 1, 1, 1]) == pytest.approx(100 * (2 / 3 + 4 / 5) / 2)
    assert entity_f1([["B-a", "I-a", "O"], ["O"]], [["B-a", "I-a", "O"], ["B-a"]]) == pytest.approx(100 * 2 / 3)
    assert entity_f1([["O"]], [["O"]]) == 0.0
    assert normalised("The  cat's, an END.") == ["cats", "end"]
    assert word_f1("the black cat", "cat") == pytest.approx(2 / 3)
    assert word_f1("", "the") == 1.0


def test_the_head_is_on_top_of_the_models_last_states() -> None:
    """Against the states that Transformers itself returns, mean over [the row's own] tokens."""
    for kind, expected_of in (
        ("bert", lambda states: states[0].mean(0)),
        ("llama", lambda states: states[0, -1]),
    ):
        base, ids = tiny_base(kind), [5, 6, 7, 8]
        states = base.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        found = pooled_states(base, None, [ids, ids[:2]])[0]
        assert relative(found, expected_of(states)) < 1e-5
    base = tiny_base("t5")
    states = base.model(
        input_ids=torch.tensor([[5, 6, 7, 8]]), decoder_input_ids=torch.tensor([[258]]), output_hidden_states=True
    ).decoder_hidden_states[-1]
    assert relative(pooled_states(base, None, [[5, 6, 7, 8], [5]])[0], states[0, 0]) < 1e-5
