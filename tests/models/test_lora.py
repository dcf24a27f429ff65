"""A base that carries a PEFT LoRA: parity, training either or both, saved apart, resumed, reloaded."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import foreword
from foreword.base import Base
from foreword.cli.main import execute
from foreword.errors import ConfigError, ModelError, UnsupportedModelError, WeightsMismatchWarning
from foreword.models.lora import lora_parameters
from foreword.training.checkpoint import list_checkpoints
from parity_helpers import CONTROL, TOLERANCE, generate, gradients, make_batch, real, run, run_expected
from tiny import byte_tokenizer, relative, tiny_model, trained_like
from training_helpers import copy_until, equal, final_state, settings, tensors, untimed, write_rows

peft = pytest.importorskip("peft")


@pytest.fixture
def place(tmp_path):
    """A stored base, a stored adapter, and rows."""
    torch.manual_seed(1)
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_dropout=0.1, task_type="CAUSAL_LM"
    )
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    return write_rows(tmp_path)


def load(place, adapter="adapter") -> Base:
    return foreword.load(place / "model", device="cpu", lora=place / adapter)


def weights(base) -> tuple[dict, dict]:
    """(the adapter's weights, all others)."""
    state = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    adapter = {name: tensor for name, tensor in state.items() if "lora_" in name}
    return adapter, {name: tensor for name, tensor in state.items() if "lora_" not in name}


def test_prefix_and_lora_together_equal_the_models_own_attention(place) -> None:
    base = load(place)
    prefix, batch = trained_like(base, 7, grad=True), make_batch(base, [11, 4, 8], "left")
    expected, values = run_expected(base, prefix, batch), run(base, prefix, batch)
    assert relative(real(values, batch), real(expected, batch)) < TOLERANCE
    assert relative(gradients(values, batch, prefix), gradients(expected, batch, prefix)) < TOLERANCE
    with base.model.disable_adapter():
        assert relative(real(run(base, prefix, batch), batch), real(expected, batch)) > CONTROL
    assert not torch.equal(generate(base, prefix, batch), generate(base, None, batch))


def test_gradients_of_the_adapter_are_right(place) -> None:
    """The fused backward passes them on, against the model's own eager attention."""
    base = load(place)
    prefix, batch = trained_like(base, 7), make_batch(base, [11, 4, 8], "left")
    adapter = list(lora_parameters(base.model).values())
    for parameter in adapter:
        parameter.requires_grad_(True)
    pairs = [
        torch.autograd.grad(real(compute(base, prefix, batch), batch).square().mean(), adapter)
        for compute in (run, run_expected)
    ]
    for ours, theirs in zip(*pairs, strict=True):
        assert relative(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("what", ["prefix", "lora", "both"])
def test_either_one_frozen_or_both_trained(place, what) -> None:
    base = load(place)
    adapter, rest = weights(base)
    config = settings(place, steps=30, train=what, lora_lr=2e-3, activation_checkpointing=True)
    result = foreword.train(base, config)
    assert result.validation_loss < result.history[0]["validation_loss"] - 0.3
    after, same = weights(base)
    assert equal(same, rest)
    assert equal(after, adapter) == (what == "prefix")
    assert equal(tensors(result.prefix), tensors(result.initial)) == (what == "lora")
    assert (result.run / "lora").is_dir() == (what != "prefix")
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert {path.name for path in (result.run / "prefix").iterdir()} == {"prefix.safetensors", "manifest.json"}

    reloaded = load(place, "run/lora") if what != "prefix" else load(place)
    assert equal(weights(reloaded)[0], after)
    saved = foreword.Prefix.load(result.run / "prefix")
    rest_of = foreword.EvalConfig(data=str(place / "valid.jsonl"), metrics=("loss",))
    assert foreword.evaluate(reloaded, rest_of, saved).metrics["loss"] == pytest.approx(
        result.validation_loss, rel=1e-5
    )
    if what != "prefix":
        with pytest.warns(WeightsMismatchWarning), load(place).attach(saved):
            pass


def test_training_both_resumes_bit_identically(place) -> None:
    changes: dict[str, Any] = {"train": "both", "lora_lr": 2e-3, "steps": 8, "checkpoint_every": 1, "validate_every": 2}
    whole = foreword.train(load(place), settings(place, "whole", **changes))
    for step in (0, 3):
        copy = copy_until(whole.run, place / f"from-{step}", step)
        resumed = foreword.train(load(place), settings(place, resume=str(copy), **changes))
        assert equal(final_state(copy), final_state(whole.run))
        assert untimed(resumed.history) == untimed(whole.history)
        assert equal(weights(load(place, f"from-{step}/lora"))[0], weights(load(place, "whole/lora"))[0])


def test_from_the_command_line(place, monkeypatch, capsys) -> None:
    monkeypatch.chdir(place)
    data = ["--data", "train.jsonl", "--validation", "valid.jsonl", "--template", "{input}="]
    arguments = ["train", "--model", "model", "--lora", "adapter", "--train", "both", *data, "--steps", "2"]
    arguments += ["--length", "4", "--output", "run"]
    assert execute(arguments) == 0
    assert "LoRA     run/lora" in capsys.readouterr().out
    assert execute(["generate", "--model", "model", "--lora", "run/lora", "--prefix", "run/prefix", "t1"]) == 0
    assert "note:" not in capsys.readouterr().err  # the prefix knows the pair it belongs to
    manifest = json.loads((place / "run" / "prefix" / "manifest.json").read_text())
    assert "+lora:" in manifest["base"]["weights"]


def test_stopped_runs_leave_the_adapter_as_it_was(place, monkeypatch) -> None:
    """The base keeps its word: its fingerprint, and a resumption that starts from the same adapter."""
    import os
    import signal

    from foreword.errors import InterruptedRunError
    from foreword.tasks import Predictions

    changes: dict[str, Any] = {"train": "both", "lora_lr": 2e-3, "steps": 8, "method": "mlp", "validate_every": 2}
    whole = foreword.train(load(place), settings(place, "whole", **changes))
    base, calls, real_losses = load(place), [], Predictions.target_losses

    def then_signal(*arguments):
        calls.append(torch.is_grad_enabled())
        if sum(calls) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return real_losses(*arguments)

    monkeypatch.setattr(Predictions, "target_losses", then_signal)
    before = base.fingerprint.weights
    with pytest.raises(InterruptedRunError):
        foreword.train(base, settings(place, **changes))
    monkeypatch.setattr(Predictions, "target_losses", real_losses)
    assert base.weights_hash() == before
    resumed = foreword.train(base, settings(place, resume=str(place / "run"), **changes))
    assert untimed(resumed.history) == untimed(whole.history)
    assert equal(tensors(resumed.prefix), tensors(whole.prefix))


def test_an_adapter_of_another_name(place) -> None:
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_model("llama"), config, adapter_name="style")
    model.add_adapter("unused", config)
    base = Base(model, byte_tokenizer(), name="styled")
    unused = {name: p.clone() for name, p in model.named_parameters() if ".unused." in name}
    result = foreword.train(base, settings(place, steps=4, train="both", lora_lr=2e-3))
    assert (result.run / "lora" / "adapter_model.safetensors").is_file()
    assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in unused.items())
    with base.attach(result.prefix):
        pass


def test_other_adapters_are_refused() -> None:
    config = peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    )
    with pytest.raises(UnsupportedModelError, match="type IA3"):
        Base(peft.get_peft_model(tiny_model("llama"), config))


def test_wrong_uses(place) -> None:
    plain = foreword.load(place / "model", device="cpu")
    with pytest.raises(ConfigError, match="carries no LoRA"):
        foreword.train(plain, settings(place, train="both"))
    assert not (place / "run").exists()
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        load(place, "model")
    (place / "adapter" / "adapter_model.safetensors").rename(place / "adapter" / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickled adapters"):
        load(place)


@pytest.mark.parametrize("what", ["lora", "both"])
def test_a_head_learns_beside_a_lora(place, what) -> None:
    """Whether the prefix learns or not; the best head, prefix and adapter are saved, and measure as they did."""
    for name, count in (("train", 24), ("valid", 6)):
        rows = [{"text": f"{'warm' if i % 2 else 'cold'}{i}", "label": ("no", "yes")[i % 2]} for i in range(count)]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = load(place)
    changes = {"task": "seq-cls", "template": None, "train": what, "lora_lr": 2e-3, "head_lr": 0.02, "steps": 12}
    result = foreword.train(base, settings(place, **changes))
    assert result.validation_loss < result.history[0]["validation_loss"]
    first, last = (load_file(path / "state.safetensors") for path in list_checkpoints(result.run / "checkpoints")[:2])
    moved = {name.partition(".")[0] for name in first if not torch.equal(first[name], last.get(name, first[name]))}
    assert moved & {"head", "lora", "producer"} == {"head", "lora"} | ({"producer"} if what == "both" else set())
    request = foreword.EvalConfig(data=str(place / "valid.jsonl"), prefix=str(result.run / "prefix"))
    assert foreword.evaluate(base, request).metrics["loss"] == pytest.approx(result.validation_loss, rel=1e-5)
