"""Objectives: what a run minimises is theirs, what it is validated by stays the task's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import foreword
import head_helpers
from foreword.errors import ConfigError
from foreword.objectives import OBJECTIVES, Objective, get_objective
from foreword.tasks import LanguageModelling, Mixture, Predictions, Task, TaskSettings, make_task
from foreword.tasks.mixture import MixtureItem
from foreword.tasks.verbalizer import Verbalizer
from rows_helpers import item_of
from tiny import relative, tiny_base, trained_like
from training_helpers import copy_until, equal, final_state, settings, tensors, untimed, write_rows


class Kept(Objective):
    """KL divergence from what the plain base predicts, in nats."""

    name = "kept"
    needs_reference = True
    seen: list[tuple[Predictions, Predictions | None]]

    def losses(self, predictions: Predictions, reference: Predictions | None) -> Tensor:
        self.seen.append((predictions, reference))
        assert reference is not None
        ours, theirs = (F.log_softmax(made.logits(), -1) for made in (predictions, reference))
        return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


class Doubled(Objective):
    """Twice the cross entropy; it needs no reference, so it goes with heads too."""

    name = "doubled"

    def losses(self, predictions: Predictions, reference: Predictions | None) -> Tensor:
        return 2 * predictions.target_losses()


@pytest.fixture
def kept(monkeypatch) -> list[tuple[Predictions, Predictions | None]]:
    """The registered objective's (predictions, reference), call by call."""
    seen: list[tuple[Predictions, Predictions | None]] = []
    monkeypatch.setattr(Kept, "seen", seen, raising=False)
    monkeypatch.setitem(OBJECTIVES, "kept", Kept)
    monkeypatch.setitem(OBJECTIVES, "doubled", Doubled)
    return seen


LM = [{"input": "q" * n, "target": "yes" * (1 + n % 2)} for n in range(1, 5)]


def lm(kind: str = "llama") -> tuple[Task[Any], list[Any]]:
    task = make_task(tiny_base(kind), "lm", TaskSettings("{input}="))
    return task, [item_of(task, row) for row in LM]


def classes() -> tuple[Task[Any], list[Any]]:
    task = make_task(tiny_base("bert"), "seq-cls", TaskSettings())
    made = [head_helpers.classified(i) for i in range(4)]
    task.learn(made)
    return task, [item_of(task, row) for row in made]


def mixture() -> tuple[Task[Any], list[Any]]:
    base = tiny_base("bert")
    tasks: dict[str, Task[Any]] = {
        "colours": make_task(base, "seq-cls", TaskSettings()),
        "people": make_task(base, "token-cls", TaskSettings()),
    }
    items = []
    for i in range(4):
        for (name, task), row in zip(tasks.items(), (head_helpers.classified, head_helpers.tagged), strict=True):
            if i == 0:
                task.learn([row(number) for number in range(4)])
            items.append(MixtureItem(name, item_of(task, row(i))))
    made = Mixture(base, tasks)
    made.collect_heads()
    return made, items


TASKS = {"lm": lm, "lm, two sides": lambda: lm("t5"), "seq-cls": classes, "mixture": mixture}


@pytest.mark.parametrize("name", TASKS)
def test_cross_entropy_is_the_tasks_own_measure(name) -> None:
    task, items = TASKS[name]()
    prefix = trained_like(task.base, 4)
    losses = task.losses(prefix, items)
    found = get_objective("cross-entropy").weighted(task.predict(prefix, items), ())
    assert torch.equal(found, losses)
    assert relative(task.losses(None, items), losses) > 1e-3
    by_hand = torch.cat(
        [
            made.weighted(F.cross_entropy(made.logits(), made.targets, reduction="none"))
            for made in task.predict(prefix, items)
        ]
    )
    assert relative(found, by_hand) < 1e-5


def test_a_row_of_a_mixture_weighs_the_same_under_any_objective(kept) -> None:
    """A row with three tags counts as much as a row with one class."""
    task, items = mixture()
    prefix = trained_like(task.base, 4)
    predictions, references = task.predict(prefix, items), task.predict(None, items)
    found = Kept().weighted(predictions, references)
    plain = torch.cat([Kept().losses(*pair) for pair in zip(predictions, references, strict=True)])
    assert len(found) == len(plain) == 4 + 3 * 4
    assert torch.allclose(found[:4], plain[:4])
    assert torch.allclose(found[4:], plain[4:] / 3)


@pytest.mark.parametrize("name", ["lm", "verbalizer", "mixture without heads"])
def test_the_reference_is_what_the_plain_base_predicts_for_the_same_rows(name, kept, tmp_path, monkeypatch) -> None:
    base, config = run_of(name, tmp_path)
    kinds: dict[str, type[Task[Any]]] = {"lm": LanguageModelling, "verbalizer": Verbalizer}
    kind, made = kinds.get(name, Mixture), {}
    real = kind.predict

    def watched(task, prefix, items):
        found = real(task, prefix, items)
        made.update({id(one): (one, prefix, [item.where for item in items]) for one in found})
        return found

    monkeypatch.setattr(kind, "predict", watched)
    foreword.train(base, config("run", steps=3, accumulation=2, objective="kept"))
    assert len(kept) >= 6
    for predictions, reference in kept:
        _, prefix, rows = made[id(predictions)]
        _, without, same_rows = made[id(reference)]
        assert prefix is not None
        assert without is None
        assert rows == same_rows
        assert reference is not None
        assert torch.equal(predictions.targets, reference.targets)
        assert predictions.logits().requires_grad
        assert not reference.logits().requires_grad
        assert relative(predictions.logits(), reference.logits()) > 1e-3


def run_of(name: str, folder) -> tuple[foreword.Base, Any]:
    """A base, and a function that makes configs of small runs of the task on it."""
    if name == "lm":
        rows = write_rows(folder)
        return tiny_base(), lambda called, **changes: settings(rows, called, **({"validate_every": 3} | changes))
    words: dict[str, Any] = {"task": "verbalizer", "template": "{text} It was"}
    if name == "verbalizer":
        rows = head_helpers.write(folder, "seq-cls")
        return tiny_base(), lambda called, **changes: settings(rows, called, **(words | changes))
    if name == "mixture without heads":
        rows, texts = head_helpers.write(folder, "seq-cls"), folder / "texts"
        texts.mkdir()
        write_rows(texts)
        parts = {"texts": {"template": "{input}="} | files(texts), "words": words | files(rows)}
        more = {"data": "", "validation": None, "template": None, "mixture": parts}
        return tiny_base(), lambda called, **changes: settings(rows, called, **(more | changes))
    if name == "seq-cls":
        rows = head_helpers.write(folder, "seq-cls")
        more = {"task": "seq-cls"}
    else:
        rows, parts = folder, {}
        for part, task in (("colours", "seq-cls"), ("people", "token-cls")):
            (folder / part).mkdir()
            held = head_helpers.write(folder / part, task)
            parts[part] = {"task": task} | files(held)
        more = {"data": "", "validation": None, "mixture": parts}
    return tiny_base("bert"), lambda called, **changes: head_helpers.config(rows, called, **(more | changes))


def files(folder) -> dict[str, Any]:
    return {"data": str(folder / "train.jsonl"), "validation": str(folder / "valid.jsonl")}


@pytest.mark.parametrize(("name", "objective"), [("lm", "kept"), ("seq-cls", "doubled"), ("mixture", "doubled")])
def test_validation_stays_the_tasks_own_cross_entropy(name, objective, kept, tmp_path) -> None:
    base, config = run_of(name, tmp_path)
    changes = {"steps": 6, "validate_every": 3, "checkpoint_every": 3}
    own = foreword.train(base, config("own", **changes))
    other = foreword.train(base, config("other", objective=objective, **changes))
    first = [run.history[0]["validation_loss"] for run in (own, other)]
    assert first[0] == first[1], "before the first step the two runs have the same prefix"
    assert own.history[1]["loss"] != pytest.approx(other.history[1]["loss"], rel=1e-2)
    assert other.prefix.record["config"]["objective"] == objective
    if name != "mixture":
        request = foreword.EvalConfig(
            data=config("any").validation,
            prefix=str(other.run / "prefix"),
            metrics=("loss",),
            template=config("any").template,
        )
        assert foreword.evaluate(base, request).metrics["loss"] == pytest.approx(other.validation_loss, rel=1e-5)


def test_training_minimises_the_objective(kept, tmp_path) -> None:
    """A prefix that is to leave the base as it was comes nearer to that, and no nearer to the answers."""
    base, config = run_of("lm", tmp_path)
    result = foreword.train(base, config("run", objective="kept", steps=30, lr=0.05, validate_every=30))
    losses = [row["loss"] for row in result.history if "loss" in row]
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


def test_a_run_with_another_objective_resumes_bit_for_bit_and_not_with_a_third(kept, tmp_path) -> None:
    base, config = run_of("lm", tmp_path)
    changes = {"steps": 6, "checkpoint_every": 3, "objective": "kept"}
    whole = foreword.train(base, config("whole", **changes))
    copy = copy_until(whole.run, tmp_path / "copy", 3)
    resumed = foreword.train(base, config("run", resume=str(copy), **changes))
    assert equal(final_state(copy), final_state(whole.run))
    assert equal(tensors(resumed.prefix), tensors(whole.prefix))
    assert untimed(resumed.history) == untimed(whole.history)
    with pytest.raises(foreword.errors.CheckpointError, match="was made with objective 'kept', not 'cross-entropy'"):
        foreword.train(base, config("run", resume=str(copy), **(changes | {"objective": "cross-entropy"})))


def test_a_reference_of_other_predictions_is_refused(kept) -> None:
    task, items = lm()
    predictions = task.predict(trained_like(task.base, 4), items)
    with pytest.raises(ConfigError, match="objective: kept needs the plain base to predict the same tokens"):
        Kept().weighted(predictions, task.predict(None, items[:2]))


def test_an_unknown_objective_is_named() -> None:
    with pytest.raises(ConfigError, match="objective: 'hinge' is not known; choose from cross-entropy"):
        get_objective("hinge")
