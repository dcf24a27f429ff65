"""The digest of a checkpoint covers all of state.json and state.safetensors; what doesn't fit gets a typed error."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from foreword.errors import CheckpointError
from foreword.methods.direct import DirectProducer
from foreword.tensorfiles import file_digest
from foreword.training.checkpoint import RunState, load_checkpoint, read_state, save_checkpoint
from foreword.training.trained import Trained
from manifest_helpers import VALUES, at, edit, places, put, remove
from prefix_helpers import small

STATE = RunState(step=4, best_loss=1.5, best_step=2, stale=1, validated=4)
CONFIG: dict[str, Any] = {"lr": 0.05, "steps": 8, "template": None, "slots": [], "mixture": {"one": {"task": "lm"}}}


def make() -> tuple[Trained, torch.optim.Optimizer]:
    trained = Trained(DirectProducer(small()))
    optimizer = torch.optim.AdamW(trained.parameters())
    sum(parameter.sum() for parameter in trained.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    return trained, optimizer


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    trained, optimizer = make()
    return save_checkpoint(tmp_path_factory.mktemp("original"), trained, optimizer, STATE, CONFIG, {"data": "sha256:1"})


def assert_whole(path: Path) -> None:
    assert read_state(path) == (STATE, CONFIG, {"data": "sha256:1"})
    with torch.random.fork_rng():
        assert load_checkpoint(path, *make()) == STATE


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_other_value_is_noticed(original, tmp_path_factory, data) -> None:
    copy = shutil.copytree(original, tmp_path_factory.mktemp("changed") / "step-000004")
    manifest = json.loads((copy / "state.json").read_text())
    place = data.draw(st.sampled_from(list(places(manifest))))
    before, new = at(manifest, place), data.draw(VALUES)
    put(manifest, place, new)
    (copy / "state.json").write_text(json.dumps(manifest))
    if json.dumps(new) == json.dumps(before):
        assert_whole(copy)
    else:
        with pytest.raises(CheckpointError):
            read_state(copy)


def test_any_value_that_is_left_out_or_added_is_noticed(original, tmp_path) -> None:
    assert_whole(original)
    manifest = json.loads((original / "state.json").read_text())
    for number, place in enumerate([*places(manifest), ("new",), ("progress", "new"), ("inputs", "new")]):
        copy = shutil.copytree(original, tmp_path / str(number))
        change = partial(put, place=place, new=1) if place[-1] == "new" else partial(remove, place=place)
        edit(copy / "state.json", change, sign=False)
        with pytest.raises(CheckpointError):
            read_state(copy)


@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_other_byte_of_the_tensors_is_noticed(original, tmp_path_factory, where, bit) -> None:
    copy = shutil.copytree(original, tmp_path_factory.mktemp("changed") / "step-000004")
    content = bytearray((copy / "state.safetensors").read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    (copy / "state.safetensors").write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="digest differs"):
        load_checkpoint(copy, *make())


def test_a_new_checkpoint_does_not_pass_as_an_old_one(original, tmp_path) -> None:
    copy = shutil.copytree(original, tmp_path / "step-000004")
    edit(copy / "state.json", lambda m: m.update(version=4), sign=False)
    with pytest.raises(CheckpointError, match="'bytes', which version 4 did not know"):
        read_state(copy)
    edit(copy / "state.json", lambda m: (m.pop("bytes"), m.update(digest=m.pop("content"))), sign=False)
    with pytest.raises(CheckpointError, match="is of version 5, its manifest of 4"):
        read_state(copy)


def test_fields_of_a_newer_version_are_ignored(original, tmp_path) -> None:
    copy = shutil.copytree(original, tmp_path / "step-000004")
    edit(copy / "state.json", lambda m: (m.update(colour="red"), m["progress"].update(colour="red")))
    assert_whole(copy)


def test_progress_that_is_left_out_is_as_at_the_start(original, tmp_path) -> None:
    copy = shutil.copytree(original, tmp_path / "step-000004")
    edit(copy / "state.json", lambda m: m["progress"].pop("stale"))
    assert read_state(copy)[0] == dataclasses.replace(STATE, stale=0)


def test_settings_that_could_not_be_read_again_are_not_saved(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="half of a surrogate pair"):
        save_checkpoint(tmp_path, *make(), STATE, {"template": "\ud800"}, {})
    assert list(tmp_path.iterdir()) == []


Tensors = dict[str, torch.Tensor]
FOREIGN: dict[str, Callable[[Tensors], Any]] = {
    "no generator": lambda t: t.pop("random.cpu"),
    "generator of numbers": lambda t: t.update({"random.cpu": torch.randn(5056)}),
    "short generator": lambda t: t.update({"random.cpu": t["random.cpu"][:7].clone()}),
    "no parameter": lambda t: t.pop("producer.keys.0"),
    "another parameter": lambda t: t.update({"producer.more": torch.zeros(3)}),
    "a parameter of another shape": lambda t: t.update({"producer.keys.0": torch.zeros(3, 3)}),
    "no step": lambda t: t.pop("optimizer.producer.keys.0.step"),
    "moments of another shape": lambda t: t.update({"optimizer.producer.keys.0.exp_avg": torch.zeros(7)}),
    "moments of integers": lambda t: t.update(
        {"optimizer.producer.keys.0.exp_avg": t["optimizer.producer.keys.0.exp_avg"].long()}
    ),
    "moments of another kind": lambda t: t.update({"optimizer.producer.keys.0.momentum": torch.zeros(7)}),
}


@pytest.mark.parametrize("way", FOREIGN)
def test_tensors_that_do_not_fit_get_a_typed_error(original, tmp_path, way) -> None:
    copy = shutil.copytree(original, tmp_path / "step-000004")
    tensors = load_file(copy / "state.safetensors")
    FOREIGN[way](tensors)
    save_file(tensors, copy / "state.safetensors", metadata={"version": "5"})
    file = copy / "state.safetensors"
    edit(copy / "state.json", lambda m: m.update(bytes=file.stat().st_size, content=file_digest(file)))
    with pytest.raises(CheckpointError, match="does not fit this method"):
        load_checkpoint(copy, *make())
