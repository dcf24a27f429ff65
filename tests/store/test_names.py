"""Names and files of bad will: what is not on the list is refused, and what is no plain file is not read."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreword.errors import ConfigError, ForewordError, PrefixFormatError
from foreword.prefix import Prefix
from foreword.store import Store
from foreword.versions.names import check_name, check_tag, is_reference, parse
from store_helpers import numbered

REFUSED = (
    "", "team", "team/", "/task", "/etc/passwd", "../task", "team/..", "team/.", "./task", "team/task/more",
    "team//task",
    "team\\task", "team/ta\\sk", "team/task\0", "team/ta\nsk", "team/ta sk", "team/task ", "Team/task", "team/TASK",
    "te%2fam/task", "%2e%2e/task", "..%2f/task", "team/%00", "tеam/task", "team/tаsk", "team/ｔask", "team/task\u200b",
    "team/ßx", "team/ıx", "team/k\u0301", "con/task", "team/nul", "team/aux.txt", "team/com1", "-team/task",
    "team/.hidden",
    "team/task.", "team/task-", "team/" + "a" * 65, "a" * 300, "a/" + "b" * 300, "~/task", "$HOME/task", "team/*",
    "a:b/c",
    "team/task@a/b", "team/task@..", "team/task@", "team/task@UP", "team/task@v 1", "team/task@sha256:xyz",
    "team/task@sha256:" + "0" * 65, "team/task@é",
)  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(tmp_path, name) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(ConfigError) as caught:
        store.load(name)
    assert str(caught.value).isprintable()
    if "@" not in name:
        with pytest.raises(ConfigError):
            store.add(numbered(1), name)
    assert not is_reference(name)
    assert not (tmp_path / "store").exists()


def test_no_allowed_name_equals_another_in_other_case() -> None:
    for name in ("a/b", "team-1/task_2.x", "0/9", "a" * 64 + "/b"):
        check_name(name)
        with pytest.raises(ConfigError, match="upper case"):
            check_name(name.upper() if name.upper() != name else "A/b")
    for tag in ("v1", "prod", "2026-11-28", "abcdef"):
        check_tag(tag)
    for tag in ("deadbeef", "0" * 64, "latest/x"):
        with pytest.raises(ConfigError):
            check_tag(tag)


@given(st.text(max_size=80))
def test_what_is_allowed_is_a_plain_path(text) -> None:
    try:
        reference = parse(text)
    except ConfigError:
        return
    team, task = reference.name.split("/")
    for part in (team, task, reference.tag or "x"):
        assert part.isascii()
        assert part == part.lower()
        assert Path(part).name == part
        assert part not in (".", "..")
        assert len(part) <= 64


THINGS = {
    "a link": lambda path, other: path.symlink_to(other),
    "a hard link": lambda path, other: os.link(other, path),
    "a pipe": lambda path, other: os.mkfifo(path),
    "a folder": lambda path, other: path.mkdir(),
    "nothing": lambda path, other: None,
}


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("part", ["version.json", "prefix/manifest.json", "prefix/prefix.safetensors", "README.md"])
def test_no_file_but_a_plain_one_is_read(tmp_path, thing, part) -> None:
    store = Store(tmp_path / "store")
    version = store.add(numbered(1), "team/task")
    file = Path(store.url) / "prefixes/team/task/versions" / version.digest / part
    copy = Path(shutil.copy(file, tmp_path / "copy"))
    file.unlink()
    THINGS[thing](file, copy)
    assert store.verify("team/task")[1]
    if part != "README.md":
        with pytest.raises(ForewordError):
            store.load("team/task")


@pytest.mark.parametrize("part", ["prefixes", "prefixes/team", "prefixes/team/task", "prefixes/team/task/versions"])
def test_no_link_leads_out(tmp_path, part) -> None:
    store, outside = Store(tmp_path / "store"), tmp_path / "outside"
    store.add(numbered(1), "team/task")
    folder = tmp_path / "store" / part
    folder.rename(outside)
    folder.symlink_to(outside, target_is_directory=True)
    with pytest.raises(ForewordError):
        store.load("team/task")
    before = sorted(path for path in outside.rglob("*") if path.is_file())
    with pytest.raises(ForewordError):
        store.add(numbered(2), "team/task")
    assert sorted(path for path in outside.rglob("*") if path.is_file()) == before


def test_a_version_in_anothers_place_is_refused(tmp_path) -> None:
    store = Store(tmp_path / "store")
    first, second = (store.add(numbered(number), "team/task") for number in (1, 2))
    versions = Path(store.url) / "prefixes/team/task/versions"
    shutil.rmtree(versions / second.digest)
    shutil.copytree(versions / first.digest, versions / second.digest)
    with pytest.raises(PrefixFormatError, match="it was changed"):
        store.load("team/task")
    other = Path(store.url) / "prefixes/other/task"
    shutil.copytree(versions.parent, other)
    with pytest.raises(PrefixFormatError, match="is a version of team/task"):
        store.load(f"other/task@{first.digest}")
    assert any("is a version of team/task" in problem.what for problem in store.verify("other/task")[1])


def test_files_that_are_swapped_while_they_are_read(tmp_path) -> None:
    """A writer swaps two whole versions' files in and out; a reader gets the right bytes or an error, never others."""
    store = Store(tmp_path / "store")
    first, second = (store.add(numbered(number), "team/task") for number in (1, 2))
    good, bad = (
        Path(store.url) / "prefixes/team/task/versions" / version.digest / "prefix/prefix.safetensors"
        for version in (first, second)
    )
    kept, ended, wrong = good.read_bytes(), threading.Event(), []

    def swap() -> None:
        while not ended.is_set():
            for data in (bad.read_bytes(), kept):
                temporary = tmp_path / "swapped"
                temporary.write_bytes(data)
                temporary.replace(good)

    thread = threading.Thread(target=swap)
    thread.start()
    outcomes = set()
    for _ in range(200):
        try:
            prefix = Prefix.load(good.parent)
            outcomes.add("loaded")
            if prefix.digest != numbered(1).digest:
                wrong.append(prefix.digest)
        except PrefixFormatError:
            outcomes.add("refused")
    ended.set()
    thread.join()
    assert wrong == []
    assert outcomes == {"loaded", "refused"}
