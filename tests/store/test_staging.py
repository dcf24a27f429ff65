"""What a version is made of: the bytes of what was added, what is said of it, its card, and its head."""

from __future__ import annotations

import pytest

from foreword.errors import ConfigError, PrefixError, PrefixFormatError
from foreword.store import Store
from foreword.tasks import TaskSettings, make_task
from foreword.tasks.saved import read_states, save_task
from foreword.versions.opening import VersionFiles, files_of
from head_helpers import ROWS
from store_helpers import numbered
from tiny import tiny_base


@pytest.fixture
def local(tmp_path) -> Store:
    return Store(tmp_path / "store")


def test_versions_never_change(local) -> None:
    local.add(numbered(1), "team/task")
    with local.open("team/task") as folder:
        assert isinstance(files_of(folder / "prefix"), VersionFiles)
        with pytest.raises(PrefixFormatError, match="a version in a store, which never changes"):
            numbered(2).save(folder / "prefix")


def test_compressed_forms_are_kept(local, tmp_path) -> None:
    """A version has the bytes of the folder that was added."""
    prefix = numbered(3)
    folder = prefix.save(tmp_path / "plain")
    local.add(folder, "team/task")
    with local.open("team/task") as stored:
        for name in ("manifest.json", "prefix.safetensors"):
            assert (stored / "prefix" / name).read_bytes() == (folder / name).read_bytes()


def test_records_tell_no_home_folder(local, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    prefix = numbered(1)
    for place in ("/home/someone/rows.jsonl", "see /home/someone", "file:///home/someone/x"):
        with pytest.raises(PrefixError, match="names your home folder"):
            local.add(prefix.with_record("direct", {"notes": [place]}), "team/task")
    assert local.names() == []
    local.add(prefix.with_record("direct", {"notes": "/home/someone-else"}), "team/task")


def test_the_card_says_what_it_is_and_runs_nothing(local) -> None:
    hostile = "<script>alert(1)</script> [x](javascript:1) ![i](http://x)\n---\nlicense: evil\n# Title"
    record = {
        "template": "`{input}` | <b>", "data": {"training": {"name": "a`b|c<script>", "rows": 12}},
        "validation_loss": 1.5,
    }  # fmt: skip
    local.add(numbered(1).with_record("mlp", record), "team/task", description=hostile, licence="mit\nbase_model: x")
    with local.open("team/task") as folder:
        card = (folder / "README.md").read_text()
    front = card.split("---\n")[1]
    assert 'license: "mit\\nbase_model: x"' in front
    assert "evil" not in front
    assert "<script>" not in card.replace("``a`b\\|c<script>``", "")
    assert "\\[x\\](javascript:1)" in card
    assert "foreword generate --prefix team/task" in card
    assert "| `validation_loss` | 1.5 |" in card
    assert "optimistic" in card


def test_facts_that_cannot_be(local) -> None:
    for about in (
        {"metrics": {"bleu": float("nan")}}, {"metrics": {"bleu": "12"}}, {"licence": ""},
        {"description": "x" * 20_000}, {"tags": ["UP"]}, {"tags": ["deadbeef"]},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            local.add(numbered(1), "team/task", **about)
    assert local.names() == []


def test_a_trained_head_comes_along(local, tmp_path) -> None:
    """It is held to the version's digests, too, and an evaluation finds it beside the prefix."""
    run = tmp_path / "run"
    numbered(1).save(run / "prefix")
    task = make_task(tiny_base("bert"), "seq-cls", TaskSettings())
    task.learn(ROWS["seq-cls"](number) for number in range(4))
    save_task(task, run / "head")
    version = local.add(run, "team/classes")
    assert version.has_head
    assert version.facts["task"] == "seq-cls"
    with local.open("team/classes") as folder:
        states, tensors = read_states(folder / "head")
        assert "foreword eval --prefix team/classes" in (folder / "README.md").read_text()
        expected, known = read_states(run / "head")
        assert states == expected
        assert all(tensors[name].equal(tensor) for name, tensor in known.items())
        file = folder / "head" / "head.json"
        data = file.read_bytes()
        file.write_bytes(data + b" ")
        with pytest.raises(PrefixFormatError, match=r"head\.json"):
            read_states(folder / "head")
        file.write_bytes(data)
    assert local.verify() == (1, [])


def test_a_prefix_with_a_lora_is_not_torn_from_it(local, tmp_path) -> None:
    numbered(1).save(tmp_path / "run" / "prefix")
    (tmp_path / "run" / "lora").mkdir()
    with pytest.raises(PrefixError, match="not complete without its LoRA"):
        local.add(tmp_path / "run", "team/task")
