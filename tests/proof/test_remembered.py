"""Outcomes of proofs are remembered, by class, configuration and versions."""

from __future__ import annotations

import json
import os

import pytest
import transformers

from foreword.base.loading import empty_model
from foreword.errors import UnsupportedModelError
from foreword.files import cache_folder
from foreword.models.architectures import architecture_of
from foreword.proof import gate, remembered, small
from strange import GatedAttention, PlainAttention, strange

SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "cache"))


def model(kind: str = "olmo", **changes: object):
    return empty_model(transformers.AutoConfig.for_model(kind, **SIZES | changes))


def entries() -> list:
    return sorted((cache_folder() / "proofs").glob("*.json"))


@pytest.fixture
def attempts(monkeypatch) -> list[str]:
    """The models that small ones are built of from now on."""
    built: list[str] = []
    build = small.small_model

    def counted(real, spread):
        built.append(type(real).__name__)
        return build(real, spread)

    monkeypatch.setattr(gate, "small_model", counted)
    return built


def test_a_second_load_builds_nothing(attempts) -> None:
    first, second = model(), model()
    gate.require_proof(first)
    assert attempts == ["OlmoForCausalLM"]
    gate.require_proof(second)
    assert attempts == ["OlmoForCausalLM"]
    assert architecture_of(second) == architecture_of(first)


def test_a_refusal_is_remembered_too(attempts) -> None:
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="computes more than attention"):
            gate.require_proof(model("doge", num_key_value_heads=2))
    assert set(attempts) == {"DogeForCausalLM"}
    assert len(attempts) == len(gate.SPREADS)


def test_what_an_outcome_depends_on(monkeypatch) -> None:
    linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    models = model(), model(rope_parameters=linear), model("olmo2")
    seen = [remembered.identity(one) for one in models]
    monkeypatch.setattr(transformers, "__version__", "0")
    seen.append(remembered.identity(model()))
    monkeypatch.setattr(remembered, "__version__", "0")
    seen.append(remembered.identity(model()))
    monkeypatch.setattr("torch.__version__", "0")
    seen.append(remembered.identity(model()))
    assert len({json.dumps(key, sort_keys=True) for key in seen}) == len(seen)
    other = model()
    other.config.name_or_path, other.config.architectures = "elsewhere", ["OlmoForCausalLM"]
    assert remembered.identity(other) == seen[-1]


def test_code_that_comes_with_a_checkpoint_counts() -> None:
    plain, gated = (remembered.identity(strange(kind)) for kind in (PlainAttention, GatedAttention))
    other = remembered.identity(model())
    assert plain
    assert gated
    assert other
    assert plain["code"] == gated["code"] != other["code"]
    assert plain["class"] != gated["class"]
    unknown = strange(PlainAttention)
    type(unknown).__module__ = "nowhere"
    assert remembered.identity(unknown) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"half"', '"sideways"'),
        lambda text: text.replace('"packs": true', '"packs": 1'),
        lambda text: text.replace('"attention": "Olmo', '"attenti0n": "Olmo'),
        lambda text: text.replace('"route": "attention"', '"route": "cache"'),
        lambda text: text.replace('"also": []', '"also": [3]'),
        lambda text: text.replace('"foreword": "', '"foreword": "9'),
        lambda text: text.replace('"reason": ""', '"reason": 3'),
        lambda text: json.dumps(json.loads(text) | {"architecture": None}),
        lambda text: "[" * 100_000,
    ],
)
def test_a_damaged_entry_is_ignored(attempts, damage) -> None:
    gate.require_proof(model())
    (entry,) = entries()
    sound = entry.read_text()
    assert damage(sound) != sound
    entry.write_text(damage(sound))
    gate.require_proof(model())
    assert len(attempts) == 2
    assert entry.read_text() == sound


def test_without_a_writable_cache_it_is_tried_again(attempts, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        gate.require_proof(model())
    assert len(attempts) == 2


def test_a_pipe_in_place_of_an_entry(attempts) -> None:
    gate.require_proof(model())
    (entry,) = entries()
    entry.unlink()
    os.mkfifo(entry)
    gate.require_proof(model())
    assert len(attempts) == 2
