"""Model folders: what is checked before Transformers gets them, and what is left alone."""

from __future__ import annotations

import json

import pytest
import torch

import foreword
from foreword.errors import ModelError
from foreword.models.folder import checked_folder, read_config
from foreword.models.lora import tame
from tiny import byte_tokenizer, tiny_model


@pytest.fixture
def folder(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_other_files_and_links_are_left_alone(folder, tmp_path) -> None:
    (folder / "notes").mkdir()
    (folder / "server.lock").symlink_to("/dev/null")
    weights = tmp_path / "blob"
    (folder / "model.safetensors").rename(weights)
    (folder / "model.safetensors").symlink_to(weights)
    assert checked_folder(folder) == folder
    assert len(foreword.load(folder, device="cpu").slots) == 3


def test_infinity_is_read_and_nan_is_not(tmp_path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"time_step_limit": [0.0, Infinity]}')
    assert read_config(file) == {"time_step_limit": [0.0, float("inf")]}
    file.write_text('{"time_step_limit": [0.0, NaN]}')
    with pytest.raises(ModelError, match=r"config\.json can't be read: NaN"):
        read_config(file)


def test_weights_in_fewer_bits_are_enough(folder) -> None:
    """Half of the precision is half of the bytes; a model that needs far more than there is, is refused."""
    tiny_model("llama").to(torch.bfloat16).save_pretrained(folder)
    assert checked_folder(folder) == folder
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 10**6}))
    with pytest.raises(ModelError, match=r"describes a model of 0\.\d GB, but there are 0\.\d MB of weights beside it"):
        checked_folder(folder)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 65}))
    with pytest.raises(ModelError, match="num_hidden_layers: 65 layers, but there are 30 tensors"):
        checked_folder(folder)


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        "all-linear",
        r".*\.(q_proj|v_proj)",
        r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$",
        r"^(?!.*head).*o$",
    ],
)
def test_patterns_that_people_write_are_tame(pattern) -> None:
    assert tame(pattern)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+", "(a|a)*b", ".*" * 5, "(ab|ac|d)" * 5, r"(a)\1", "(a?){9}", "(", "a" * 501, "(.?)" * 5, "(?:a{2}){3}"],
)
def test_patterns_that_could_take_for_ever_are_not(pattern) -> None:
    assert not tame(pattern)
