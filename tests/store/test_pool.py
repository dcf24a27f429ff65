"""A pool keeps what fits its budget, reads what is asked for, and says what is wrong."""

from __future__ import annotations

import shutil
import threading

import pytest
import torch

import foreword
from foreword.errors import ConfigError, PrefixFormatError, PrefixMismatchError, UnknownPrefixError
from tiny import relative, tiny_base, trained_like


@pytest.fixture
def folder(tmp_path):
    base = tiny_base()
    for number in range(4):
        trained_like(base, 3, seed=number).to(torch.float16).save(tmp_path / f"task-{number}")
    (tmp_path / "notes.txt").write_text("not a prefix")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_names_are_those_of_the_folders(folder) -> None:
    pool = foreword.PrefixPool(tiny_base(), folder)
    assert list(pool) == ["task-0", "task-1", "task-2", "task-3"]
    assert len(pool) == 4
    assert "task-2" in pool
    assert not {"empty", "notes.txt", "task-9", "..", "task-0/../task-1", "", 3} & {
        name for name in ("empty", "notes.txt", "task-9", "..", "task-0/../task-1", "", 3) if name in pool
    }
    assert pool.resident == ()
    assert pool.num_bytes == 0


def test_unfinished_writes_have_no_name(folder) -> None:
    """What a killed save left, and what another process is writing now."""
    for name in (".task-0.new-1a2b3c4d", ".task-9.new-x", ".task-0.old-0"):
        shutil.copytree(folder / "task-0", folder / name)
    pool = foreword.PrefixPool(tiny_base(), folder)
    assert list(pool) == ["task-0", "task-1", "task-2", "task-3"]
    for name in (".task-0.new-1a2b3c4d", ".task-9.new-x", ".task-0.old-0"):
        assert name not in pool
        with pytest.raises(UnknownPrefixError):
            pool[name]


def test_names_that_no_file_can_have_are_unknown(folder) -> None:
    pool = foreword.PrefixPool(tiny_base(), folder)
    for name in ("a\0b", "\ud800", "x" * 5000, "task-0/", "/etc"):
        assert name not in pool
        with pytest.raises(UnknownPrefixError):
            pool[name]


def test_a_prefix_is_ready_for_the_base_and_read_once(folder) -> None:
    base = tiny_base()
    pool = foreword.PrefixPool(base, folder)
    one = pool["task-1"]
    assert pool["task-1"] is one
    saved = foreword.Prefix.load(folder / "task-1")
    for name, kv in one.slots.items():
        assert kv.key.dtype == base.dtype
        assert torch.equal(kv.key, saved.slots[name].key.float())
    pool.forget("task-1")
    pool.forget("task-1")
    assert pool.num_bytes == 0
    assert pool["task-1"] is not one


def test_the_longest_unused_go_first(folder) -> None:
    size = foreword.PrefixPool(tiny_base(), folder)["task-0"].num_bytes
    pool = foreword.PrefixPool(tiny_base(), folder, max_bytes=2 * size)
    first = pool["task-0"]
    _ = pool["task-1"], pool["task-0"], pool["task-2"]
    assert pool.resident == ("task-0", "task-2")
    assert pool.num_bytes == 2 * size
    assert pool["task-0"] is first
    small = foreword.PrefixPool(tiny_base(), folder, max_bytes=size - 1)
    assert small["task-3"].length == 3  # usable, but not kept
    assert small.resident == ()
    assert small.num_bytes == 0


def test_threads_get_the_same_prefix(folder) -> None:
    pool, found, gate = foreword.PrefixPool(tiny_base(), folder), [], threading.Barrier(4)

    def ask() -> None:
        gate.wait()
        found.append(pool["task-0"])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(prefix) for prefix in found}) == 1
    assert pool.num_bytes == found[0].num_bytes


def test_what_is_wrong_is_said(folder, tmp_path) -> None:
    base = tiny_base()
    pool = foreword.PrefixPool(base, folder)
    with pytest.raises(UnknownPrefixError, match="'task-9'"):
        pool["task-9"]
    with pytest.raises(UnknownPrefixError):
        pool["../" + folder.name + "/task-0"]
    data = (folder / "task-3" / "prefix.safetensors").read_bytes()
    (folder / "task-3" / "prefix.safetensors").write_bytes(data[:-2] + b"zz")
    with pytest.raises(PrefixFormatError):
        pool["task-3"]
    trained_like(tiny_base("gpt2"), 3).save(folder / "other")
    with pytest.raises(PrefixMismatchError):
        pool["other"]
    assert pool.resident == ()
    with pytest.raises(ConfigError, match="max_bytes"):
        foreword.PrefixPool(base, folder, max_bytes=0)
    with pytest.raises(ConfigError, match="no folder"):
        foreword.PrefixPool(base, tmp_path / "nowhere")


def test_prefixes_of_the_pool_are_switched(folder) -> None:
    base = tiny_base()
    pool = foreword.PrefixPool(base, folder)
    ids = torch.arange(5).unsqueeze(0)
    with torch.no_grad(), base.attach(pool["task-0"]):
        first = base.model(input_ids=ids).logits
        base.switch(pool["task-1"])
        second = base.model(input_ids=ids).logits
    with torch.no_grad(), base.attach(pool["task-1"]):
        assert torch.equal(base.model(input_ids=ids).logits, second)
    assert relative(first, second) > 1e-2


def test_what_was_read_before_it_was_forgotten_is_not_kept(folder, monkeypatch) -> None:
    pool, real = foreword.PrefixPool(tiny_base(), folder), foreword.PrefixPool._read

    def slow(self, name):
        found = real(self, name)
        self.forget(name)  # the files change meanwhile, and another thread says so
        return found

    monkeypatch.setattr(foreword.PrefixPool, "_read", slow)
    assert pool["task-0"].length == 3
    assert pool.resident == ()
    assert pool.num_bytes == 0
