"""The digest of a saved head covers all of head.json and head.safetensors; version 1, which covered less, is read."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from foreword.errors import OldFormatWarning, PrefixError, PrefixFormatError
from foreword.tasks import Task, TaskSettings, make_task
from foreword.tasks.saved import MANIFEST, TENSORS, read_states, save_task
from head_helpers import ROWS
from manifest_helpers import VALUES, at, edit, places, put, remove
from tiny import tiny_base

Read = tuple[dict[str, dict[str, Any]], dict[str, torch.Tensor]]


def make() -> Task[Any]:
    task = make_task(tiny_base("bert"), "seq-cls", TaskSettings("{text}!"))
    task.learn(ROWS["seq-cls"](number) for number in range(4))
    return task


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> tuple[Path, Read]:
    folder = save_task(make(), tmp_path_factory.mktemp("original") / "head")
    return folder, read_states(folder)


def assert_same(one: Read, other: Read) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_other_value_is_noticed(original, tmp_path_factory, data) -> None:
    folder, read = original
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("changed") / "head")
    manifest = json.loads((copy / MANIFEST).read_text())
    place = data.draw(st.sampled_from(list(places(manifest))))
    before, new = at(manifest, place), data.draw(VALUES)
    put(manifest, place, new)
    (copy / MANIFEST).write_text(json.dumps(manifest))
    if json.dumps(new) == json.dumps(before):
        assert_same(read_states(copy), read)
    else:
        with pytest.raises(PrefixFormatError):
            read_states(copy)


def test_any_value_that_is_left_out_or_added_is_noticed(original, tmp_path) -> None:
    folder, _ = original
    manifest = json.loads((folder / MANIFEST).read_text())
    for number, place in enumerate([*places(manifest), ("new",), ("tasks", "new")]):
        copy = shutil.copytree(folder, tmp_path / str(number))
        change = partial(put, place=place, new=1) if place[-1] == "new" else partial(remove, place=place)
        edit(copy / MANIFEST, change, sign=False)
        with pytest.raises(PrefixFormatError):
            read_states(copy)


@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_other_byte_of_the_tensors_is_noticed(original, tmp_path_factory, where, bit) -> None:
    folder, _ = original
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("changed") / "head")
    content = bytearray((copy / TENSORS).read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    (copy / TENSORS).write_bytes(bytes(content))
    with pytest.raises(PrefixFormatError, match="was changed or damaged"):
        read_states(copy)


def make_old(folder: Path) -> Path:
    """Turn a saved head into what version 1 wrote."""
    file = folder / TENSORS
    save_file(load_file(file), file)
    digest = "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
    edit(folder / MANIFEST, lambda m: (m.pop("content"), m.pop("bytes"), m.update(version=1, digest=digest)), False)
    return folder


def test_version_1_is_read_with_a_note(original, tmp_path) -> None:
    folder, read = original
    old = make_old(shutil.copytree(folder, tmp_path / "head"))
    with pytest.warns(OldFormatWarning, match=r"head\.json has an older format, whose digest covers its tensors alone"):
        assert_same(read_states(old), read)
    (old / TENSORS).write_bytes((old / TENSORS).read_bytes()[:-1] + b"x")
    with pytest.raises(PrefixFormatError, match="was changed or damaged"):
        read_states(old)


def test_a_new_head_does_not_pass_as_an_old_one(original, tmp_path) -> None:
    folder, _ = original
    lowered = shutil.copytree(folder, tmp_path / "lowered")
    edit(lowered / MANIFEST, lambda m: m.update(version=1), sign=False)
    with pytest.raises(PrefixFormatError, match="'bytes', which version 1 did not know"):
        read_states(lowered)
    edit(lowered / MANIFEST, lambda m: (m.pop("bytes"), m.update(digest=m.pop("content"))), sign=False)
    with pytest.raises(PrefixFormatError, match="is of version 2, its manifest of 1"):
        read_states(lowered)


def test_fields_of_a_newer_version_are_ignored(original, tmp_path) -> None:
    folder, read = original
    copy = shutil.copytree(folder, tmp_path / "head")
    edit(copy / MANIFEST, lambda m: (m.update(colour="red"), m["tasks"]["task"].update(colour="red")))
    states, tensors = read_states(copy)
    assert states["task"].pop("colour") == "red"
    assert_same((states, tensors), read)


def test_a_task_that_could_not_be_read_again_is_not_saved(tmp_path) -> None:
    task = make()
    task.labels = ["red", "\ud800"]
    with pytest.raises(PrefixError, match="half of a surrogate pair"):
        save_task(task, tmp_path / "head")
    assert list(tmp_path.iterdir()) == []


def test_tensors_own_their_memory(original, tmp_path) -> None:
    folder, read = original
    copy = shutil.copytree(folder, tmp_path / "head")
    loaded = read_states(copy)
    with (copy / TENSORS).open("r+b") as file:
        file.write(b"\xff" * (copy / TENSORS).stat().st_size)
    assert_same(loaded, read)
