"""Training on a tiny model: it learns, keeps the best, and applies nothing that isn't finite."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch

import foreword
from foreword.base.rendering import template_digest
from foreword.config import TrainConfig
from foreword.data import BadRow
from foreword.errors import ConfigError, DataError, DependencyError, NonFiniteError
from foreword.models.weights import hash_parameters
from foreword.prefix import Prefix
from foreword.tasks import Predictions, summed_loss
from foreword.training import validation
from foreword.training.checkpoint import list_checkpoints
from foreword.training.events import Started
from foreword.training.schedule import learning_rate
from tiny import tiny_base, trained_like
from training_helpers import equal, settings, tensors, write_rows


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path)


def test_learns_and_writes_the_run_folder(rows) -> None:
    base = tiny_base()
    weights = hash_parameters(base.model)
    result = foreword.train(base, settings(rows, steps=40))
    losses = [row["validation_loss"] for row in result.history if "validation_loss" in row]
    assert min(losses) < losses[0] - 0.5
    assert result.validation_loss == min(losses)
    assert hash_parameters(base.model) == weights
    names = {path.name for path in result.run.iterdir()}
    assert names == {"config.json", "history.jsonl", "loss.png", "prefix", "checkpoints"}
    updates = [row for row in result.history if "loss" in row]
    assert [row["step"] for row in updates] == list(range(1, 41))
    assert all(set(row) == {"step", "loss", "learning_rate", "tokens_per_second"} for row in updates)
    assert [row["step"] for row in result.history if "validation_loss" in row] == list(range(0, 41, 4))
    assert (result.run / "loss.png").read_bytes().startswith(b"\x89PNG")
    saved = foreword.Prefix.load(result.run / "prefix")
    assert equal(tensors(saved), tensors(result.prefix))
    assert saved.record["template"] == "{input}="
    config = json.loads((result.run / "config.json").read_text())
    assert (config["lr"], config["steps"], config["length"]) == (0.05, 40, 4)
    rest = foreword.EvalConfig(data=str(rows / "valid.jsonl"), metrics=("loss",))
    assert foreword.evaluate(base, rest, saved).metrics["loss"] == pytest.approx(result.validation_loss, rel=1e-5)


def test_accelerates_own_accumulation_changes_nothing(rows, monkeypatch) -> None:
    base = tiny_base()
    one = foreword.train(base, settings(rows, "one", steps=2))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    other = foreword.train(base, settings(rows, "other", steps=2))
    assert equal(tensors(one.prefix), tensors(other.prefix))


def test_two_runs_of_a_seed_agree_and_seeds_differ(rows) -> None:
    base = tiny_base()
    one, again, other = (
        foreword.train(base, settings(rows, f"run{i}", seed=seed)).prefix for i, seed in enumerate((3, 3, 4))
    )
    assert equal(tensors(one), tensors(again))
    assert not equal(tensors(one), tensors(other))


def test_accumulation_gives_the_same_update(rows) -> None:
    """Uneven target counts included: the loss is the mean over the step's target tokens."""
    base = tiny_base()
    one = foreword.train(base, settings(rows, "one", steps=3))
    parts = foreword.train(base, settings(rows, "parts", steps=3, accumulation=3))
    for a, b in zip(tensors(one.prefix).values(), tensors(parts.prefix).values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)
    for row, other in zip(one.history, parts.history, strict=True):
        if "loss" in row:
            assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_activation_checkpointing_gives_the_same_run(rows) -> None:
    base = tiny_base("gpt2")  # with its dropout of 0.1, which stays off
    one = foreword.train(base, settings(rows, "one", steps=3))
    other = foreword.train(base, settings(rows, "other", steps=3, activation_checkpointing=True))
    for a, b in zip(tensors(one.prefix).values(), tensors(other.prefix).values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in base.model.modules())
    assert not any(module.training for module in base.model.modules())


def test_bf16_autocast_learns(rows) -> None:
    result = foreword.train(tiny_base(), settings(rows, steps=20, mixed_precision="bf16"))
    first = result.history[0]["validation_loss"]
    assert result.validation_loss < first - 0.3
    assert result.prefix.slots["decoder.0"].key.dtype == torch.float32


def test_early_stopping_keeps_the_best(rows) -> None:
    result = foreword.train(
        tiny_base(), settings(rows, steps=60, lr=100.0, scheduler="constant", validate_every=2, patience=2)
    )
    assert result.stopped_early
    assert result.steps < 60
    losses = {row["step"]: row["validation_loss"] for row in result.history if "validation_loss" in row}
    assert result.validation_loss == min(losses.values())
    assert result.prefix.record["step"] == min(losses, key=lambda step: losses[step])


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nothing_that_is_not_finite_is_applied(rows, monkeypatch, where) -> None:
    base, real, calls = tiny_base(), Predictions.target_losses, []

    def poisoned(*arguments):
        losses = real(*arguments)
        if not torch.is_grad_enabled():
            return losses
        calls.append(len(losses))
        if len(calls) < 6:
            return losses
        if where == "loss":
            return losses * float("nan")
        losses.register_hook(lambda gradient: gradient * float("inf"))
        return losses

    monkeypatch.setattr(Predictions, "target_losses", poisoned)
    with pytest.raises(
        NonFiniteError, match=rf"step 6: the {where} is not finite; no update was made \(rows .*train\.jsonl:\d+"
    ):
        foreword.train(base, settings(rows))
    history = [json.loads(line) for line in (rows / "run" / "history.jsonl").read_text().splitlines()]
    assert history.pop() == {"step": 6, "not_finite": where}
    assert max(row["step"] for row in history) == 5
    assert all(math.isfinite(value) for row in history for value in row.values())
    assert foreword.Prefix.load(rows / "run" / "prefix").length == 4
    assert [path.name for path in list_checkpoints(rows / "run" / "checkpoints")] == ["step-000000", "step-000004"]


def test_a_run_that_failed_at_once_can_be_tried_again(rows, monkeypatch) -> None:
    base, real = tiny_base(), summed_loss
    monkeypatch.setattr(validation, "summed_loss", lambda *_: (float("nan"), 1))
    with pytest.raises(NonFiniteError, match="step 0: the validation loss is not finite"):
        foreword.train(base, settings(rows, steps=1))
    monkeypatch.setattr(validation, "summed_loss", real)
    assert foreword.train(base, settings(rows, steps=1)).steps == 1


@pytest.mark.parametrize("kind", ["opt", "starcoder2", "gpt_neox"])
def test_functional_dropout_stays_off_under_checkpointing(rows, kind) -> None:
    rates: dict[str, dict[str, Any]] = {
        "opt": {"dropout": 0.5},
        "starcoder2": {"residual_dropout": 0.5, "embedding_dropout": 0.5},
        "gpt_neox": {"hidden_dropout": 0.5},
    }
    base = tiny_base(kind, **rates[kind])
    one = foreword.train(base, settings(rows, "one", steps=2))
    other = foreword.train(base, settings(rows, "other", steps=2, activation_checkpointing=True))
    for a, b in zip(tensors(one.prefix).values(), tensors(other.prefix).values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    if kind == "opt":
        assert {layer.dropout for layer in base.model.model.decoder.layers} == {0.5}


def test_wrong_settings_stop_before_anything_is_written(rows) -> None:
    base = tiny_base()
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"data": ""}, ConfigError, "data"),
        ({"method": "lora"}, ConfigError, "method"),
        ({"trackers": ("abacus",)}, ConfigError, "trackers"),
        ({"trackers": ("dvclive",)}, DependencyError, "dvclive is needed as a tracker: pip install dvclive"),
        ({"data": str(rows / "nowhere.jsonl")}, DataError, "no such file"),
        ({"max_tokens": 5}, DataError, "more than the 5 allowed"),
        ({"options": {"hidden": 3}}, ConfigError, "hidden"),
    ]
    for changes, error, message in wrong:
        with pytest.raises(error, match=message):
            foreword.train(base, settings(rows, "never", **changes))
        assert not (rows / "never").exists()
    (rows / "taken").mkdir()
    (rows / "taken" / "file").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        foreword.train(base, settings(rows, "taken"))


def test_without_validation_rows_are_held_out(rows) -> None:
    config = dataclasses.replace(settings(rows, steps=2), validation=None)
    result = foreword.train(tiny_base(), config)
    assert result.prefix.record["training_rows"] == 22  # a tenth of 24, rounded down, is held out


def test_epochs_count_every_row(rows) -> None:
    config = dataclasses.replace(settings(rows, batch_size=5), steps=None, epochs=2.0)
    assert foreword.train(tiny_base(), config).steps == 10  # 24 rows are 5 batches


def test_bad_rows_are_counted_when_allowed(rows) -> None:
    seen: list[BadRow] = []

    def watch(event):
        if isinstance(event, Started):
            seen.extend(event.bad_rows)

    with (rows / "train.jsonl").open("a") as handle:
        handle.write('{"input": 3, "target": "x"}\n')
    foreword.train(tiny_base(), settings(rows, steps=1, max_bad_rows=1), watch)
    assert [str(bad) for bad in seen] == [f"{rows / 'train.jsonl'}:25: field 'input' must be text, not int (3)"]


def test_tensorboard_gets_the_curves(rows) -> None:
    result = foreword.train(tiny_base(), settings(rows, steps=4, trackers=("tensorboard",)))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((result.run / "trackers").rglob("events*")).parent))
    events.Reload()
    assert {"loss", "validation_loss", "learning_rate"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]


def test_global_random_state_is_left_alone(rows) -> None:
    base = tiny_base()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    foreword.train(base, settings(rows, steps=1, method="mlp"))
    assert torch.equal(torch.get_rng_state(), before)


def test_learning_rate_schedule() -> None:
    linear = [learning_rate(step, 10, 1.0, 2, 0.1, "linear") for step in range(1, 11)]
    assert linear[:2] == [0.5, 1.0]
    assert linear[-1] == pytest.approx(0.1 + 0.9 / 9)
    assert linear[5] == pytest.approx(0.1 + 0.9 * (1 - 4 / 9))
    assert learning_rate(10, 10, 1.0, 2, 0.0, "linear") == pytest.approx(1 / 9), "the last update would be lost"
    assert learning_rate(6, 9, 1.0, 2, 0.1, "cosine") == pytest.approx(0.55)
    assert learning_rate(10, 10, 1.0, 2, 0.1, "constant") == 1.0
    assert learning_rate(1, 1, 1.0, 0, 0.1, "linear") == pytest.approx(0.55)


@pytest.mark.parametrize("epochs", [1e308, 1.7976931348623157e308, 1e15])
def test_more_epochs_than_a_run_can_have(rows, epochs) -> None:
    with pytest.raises(ConfigError, match="epochs: "):
        foreword.train(tiny_base(), settings(rows, steps=None, epochs=epochs))
    assert not (rows / "run").exists()


@pytest.mark.parametrize("length", [256, 300, 2**16])
def test_a_prefix_that_fills_all_positions_is_told_so(rows, length) -> None:
    with pytest.raises(ConfigError, match=rf"length: {length} virtual tokens fill the 256 positions .* shorter prefix"):
        foreword.train(tiny_base(), settings(rows, length=length))
    base = tiny_base()
    long = trained_like(base, 256).with_record("direct", {"template": "{input}="})
    data = str(rows / "valid.jsonl")
    with pytest.raises(ConfigError, match="length: 256 virtual tokens fill the 256 positions"):
        foreword.evaluate(base, foreword.EvalConfig(data=data, metrics=("loss",)), long)
    with pytest.raises(ConfigError, match="length: 256 virtual tokens fill the 256 positions"):
        foreword.compress(base, foreword.CompressConfig(validation=data, choices=("int8",), bleu=False), long)


def test_the_record_says_how_rows_were_rendered(tmp_path) -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = {"messages": {"messages": talk}, "text": {"text": "once"}, "input/target": {"input": "q", "target": "a"}}
    base = tiny_base(chat=True)
    for shape, row in rows.items():
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for _ in range(20)))
        run = tmp_path / shape.replace("/", "-")
        config = TrainConfig(data=str(file), length=3, steps=1, lr=0.1, output=str(run), trackers=(), turns="last")
        record = Prefix.load(foreword.train(base, config).run / "prefix").record
        chat = {"turns": "last", "chat_template": template_digest(base.tokenizer)}
        assert record["rendering"] == {"shape": shape} | ({} if shape == "text" else chat)
        assert record["template"] == ("{input}" if shape == "text" else "chat")
