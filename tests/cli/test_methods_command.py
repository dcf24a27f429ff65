"""`foreword methods`: counts, shares, and what can be exported."""

from __future__ import annotations

import json

import pytest

from foreword.cli.main import execute
from tiny import tiny_model


def test_methods_are_counted_for_a_model(place, capsys) -> None:
    from foreword.methods import METHODS

    assert execute(["methods", "model", "--length", "6", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["methods"]
    assert [row["method"] for row in rows] == list(METHODS)
    counted = {row["method"]: row["parameters"] for row in rows}
    assert counted["direct"] == 2 * 3 * 6 * 2 * 16
    assert counted["prompt"] == 6 * 64
    assert execute(["methods", "model", "--length", "6"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in METHODS)


def test_methods_reproduce_known_figures_from_a_config_file(place, capsys) -> None:
    """GPT-2 Medium, 100 virtual tokens: 2 · 24 · 100 · 1024 numbers, 1.4 % of the model."""
    config = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 1024, "n_layer": 24, "n_head": 16,
        "n_positions": 1024, "vocab_size": 50257,
    }  # fmt: skip
    (place / "gpt2-medium.json").write_text(json.dumps(config))
    assert execute(["methods", "--config", "gpt2-medium.json", "--length", "100", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["model_parameters"] == pytest.approx(354.8e6, rel=1e-3)
    rows = {row["method"]: row for row in printed["methods"]}
    assert rows["direct"]["parameters"] == 4_915_200
    assert rows["direct"]["share"] == pytest.approx(0.014, abs=5e-4)
    assert rows["shared"]["saving"] >= 0.7
    assert rows["lowrank"]["saving"] >= 0.6
    assert 0.0001 <= rows["prompt"]["share"] <= 0.001
    assert execute(["methods", "--config", "gpt2-medium.json", "--length", "100"]) == 0
    text = capsys.readouterr().out
    assert "4,915,200" in text
    assert "1.39 %" in text
    assert execute(["methods", "model", "--config", "gpt2-medium.json"]) == 2


def test_methods_say_what_can_be_exported(place, capsys) -> None:
    tiny_model("bert").save_pretrained(place / "bert")
    for model, merge in (("model", "softmax"), ("bert", "embedding")):
        assert execute(["methods", model, "--json"]) == 0
        rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)["methods"]}
        assert rows["prompt"]["merge"] == merge
        assert rows["prompt"]["is_cache"] is (merge == "softmax")
        assert rows["direct"]["is_cache"] is True
        for name in ("gated", "memory", "conditioned"):
            assert rows[name]["is_cache"] is False
    assert execute(["methods", "model"]) == 0
    assert "its gates stand outside the softmax" in " ".join(capsys.readouterr().out.split())


def test_at_their_defaults_shared_and_lowrank_are_small() -> None:
    """SmolLM2's shapes, 32 virtual tokens: at least 70 and 60 % fewer parameters than keys and values."""
    from transformers import LlamaConfig

    from foreword.base.loading import empty_model
    from foreword.methods import METHODS
    from foreword.models.slots import find_slots

    config = LlamaConfig(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3)
    slots = find_slots(empty_model(config)).slots
    count = {name: method.count(slots, 32, 576, method.parse_options({})) for name, method in METHODS.items()}
    assert count["shared"] <= 0.3 * count["direct"]
    assert count["lowrank"] <= 0.4 * count["direct"]
