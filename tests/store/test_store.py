"""A home for prefixes: what is added is there, whole and unchanged, by its name, tags and digest, in every place."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from foreword.errors import (
    ConfigError,
    ForewordError,
    PrefixFormatError,
    StorageError,
    TagConflictError,
    UnknownPrefixError,
)  # fmt: skip
from foreword.prefix import Prefix
from foreword.store import PrefixPool, Store
from foreword.versions import remote
from foreword.versions.names import parse
from foreword.versions.objects import Objects
from foreword.versions.tags import tag_now
from store_helpers import BUCKET, numbered, s3, version_files
from tiny import tiny_base, trained_like

PLACES = ("folder", "memory", "s3")


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, Any]]:
    with s3() as options:
        yield options


@pytest.fixture(params=PLACES)
def store(request, tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "cache"))
    if request.param == "folder":
        return Store(tmp_path / "store")
    if request.param == "memory":
        return Store(f"memory://{tmp_path.name}-{os.getpid()}")
    return Store(f"s3://{BUCKET}/{tmp_path.name}", **request.getfixturevalue("server"))


@pytest.fixture
def local(tmp_path) -> Store:
    return Store(tmp_path / "store")


def test_what_is_added_is_there(store) -> None:
    first = store.add(numbered(1), "team/task", metrics={"bleu": 12.5}, licence="mit", tags=["prod"])
    second = store.add(numbered(2), "team/task")
    assert store.names() == ["team/task"]
    assert store.tags("team/task") == {"latest": second.digest, "prod": first.digest}
    for reference, number in (("team/task", 2), ("team/task@prod", 1), (f"team/task@{first.digest[:12]}", 1)):
        assert store.load(reference).digest == numbered(number).digest
    entries = store.entries()
    assert {entry.version.digest: entry.tags for entry in entries} == {
        first.digest: ("prod",), second.digest: ("latest",),
    }  # fmt: skip
    assert store.version("team/task@prod").facts["metrics"] == {"bleu": 12.5}
    assert store.version(f"team/task@sha256:{first.digest}").facts["licence"] == "mit"
    assert store.verify() == (2, [])


def test_the_same_added_again_is_the_same_version(store) -> None:
    digests = {store.add(numbered(1), "team/task").digest for _ in range(3)}
    assert len(digests) == 1
    assert len(store.entries("team/task")) == 1


def test_a_tag_moves_as_a_whole_and_under_a_condition(store) -> None:
    first, second = (store.add(numbered(number), "team/task") for number in (1, 2))
    store.tag(f"team/task@{first.digest}", "prod", expected=None)
    with pytest.raises(TagConflictError, match="team/task@prod means"):
        store.tag("team/task", "prod", expected=second.digest)
    with pytest.raises(TagConflictError, match="team/task@prod"):
        store.tag("team/task", "prod", expected=None)
    store.tag("team/task", "prod", expected=first.digest[:16])
    assert store.tags("team/task")["prod"] == second.digest
    store.remove("team/task@prod")
    with pytest.raises(UnknownPrefixError, match="has no team/task@prod; it has the tags latest"):
        store.load("team/task@prod")


def test_push_and_pull(store, tmp_path) -> None:
    there = Store(tmp_path / "there")
    version = store.add(numbered(1), "team/task", tags=["prod"])
    assert store.push("team/task@prod", there.url).digest == version.digest
    assert there.tags("team/task") == {"prod": version.digest}
    back = Store(tmp_path / "back")
    back.pull("team/task@prod", there.url)
    assert back.load("team/task@prod").digest == numbered(1).digest
    assert back.version("team/task@prod") == version


def test_what_is_not_there(store) -> None:
    store.add(numbered(1), "team/task")
    for reference in ("team/other", "team/task@old", "team/task@0123456789", "other/task"):
        with pytest.raises(UnknownPrefixError, match="has no"):
            store.load(reference)
    with pytest.raises(UnknownPrefixError):
        store.verify("team/other")


def test_a_collection_keeps_what_is_tagged_or_young(store, monkeypatch) -> None:
    versions = [store.add(numbered(number), "team/task") for number in range(3)]
    store.tag(f"team/task@{versions[0].digest}", "prod")
    assert store.gc() == []  # all are young
    now = timedelta(days=-1)  # older than tomorrow: all
    assert [what for _, what in store.gc(older_than=now, dry_run=True)] == ["would be removed"]
    done = store.gc(older_than=now)
    if not isinstance(store._place, remote.RemotePlace):
        assert done == [(f"team/task@{versions[1].digest[:12]}", "removed")]
    else:
        assert "marked" in done[0][1]
        assert "marked" in store.gc(older_than=now)[0][1]
        monkeypatch.setattr(remote, "WAIT", 0.0)
        assert store.gc(older_than=now) == [(f"team/task@{versions[1].digest[:12]}", "removed")]
    assert {entry.version.digest for entry in store.entries()} == {versions[0].digest, versions[2].digest}
    assert store.load("team/task@prod").digest == numbered(0).digest


def test_a_marked_version_that_gets_a_tag_stays(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "cache"))
    store = Store(f"memory://marked-{tmp_path.name}")
    first = store.add(numbered(1), "team/task")
    store.add(numbered(2), "team/task")
    store.gc(older_than=timedelta(days=-1))
    store.tag(f"team/task@{first.digest}", "prod")
    monkeypatch.setattr(remote, "WAIT", 0.0)
    assert store.gc(older_than=timedelta(days=-1)) == []
    assert store.load("team/task@prod").digest == numbered(1).digest


def test_a_tag_that_comes_during_the_removal_brings_it_back(tmp_path, monkeypatch) -> None:
    """The collection takes version.json away, looks once more, and finds the tag."""
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "cache"))
    store = Store(f"memory://race-{tmp_path.name}")
    first = store.add(numbered(1), "team/task")
    store.add(numbered(2), "team/task")
    place = store._place
    removing = place._objects.remove  # type: ignore[attr-defined]

    def remove(*parts: str) -> None:
        if parts[-1] == "version.json":
            place.set_tag(tag_now("team/task", "prod", first.digest))
        removing(*parts)

    monkeypatch.setattr(place._objects, "remove", remove)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="has a tag since now"):
        place.remove_version("team/task", first.digest)
    monkeypatch.undo()
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "other-cache"))
    assert Store(store.url).load("team/task@prod").digest == numbered(1).digest


def test_an_open_reader_keeps_a_version(local) -> None:
    first = local.add(numbered(1), "team/task")
    with local.open("team/task") as folder:
        local.add(numbered(2), "team/task")
        ((name, what),) = local.gc(older_than=timedelta(days=-1))
        assert name == f"team/task@{first.digest[:12]}"
        assert "is being read" in what
        with pytest.raises(ConfigError, match="is being read"):
            local.remove(f"team/task@{first.digest}")
        assert Prefix.load(folder / "prefix").digest == numbered(1).digest
    assert local.gc(older_than=timedelta(days=-1)) == [(f"team/task@{first.digest[:12]}", "removed")]
    with pytest.raises(ConfigError, match="is latest; move or remove the tag first"):
        local.remove(f"team/task@{local.tags('team/task')['latest']}")


def test_prefixes_are_found_by_name_everywhere(local, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("FOREWORD_STORE", local.url)
    monkeypatch.chdir(tmp_path)
    base = tiny_base()
    prefix = trained_like(base, 4)
    version = local.add(prefix, "team/task", tags=["prod"])
    for reference in ("team/task", "team/task@prod", f"team/task@{version.digest[:8]}", "store:team/task"):
        assert Prefix.load(reference).digest == prefix.digest
    pool = PrefixPool(base, local)
    assert list(pool) == ["team/task"]
    assert "team/task@prod" in pool
    assert "team/task@old" not in pool
    assert "../task" not in pool
    with base.attach(pool["team/task@prod"]):
        pass
    with pytest.raises(UnknownPrefixError, match="there is no folder team/other, and the store"):
        Prefix.load("team/other")
    trained_like(base, 6).save(tmp_path / "team" / "task")
    assert Prefix.load("team/task").length == 6  # a folder that is there goes first
    assert Prefix.load("store:team/task").length == 4


def test_damage_is_found_and_mended_by_adding_again(local) -> None:
    version = local.add(numbered(1), "team/task")
    file = next(path for path in version_files(local, "team/task") if path.suffix == ".safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    count, problems = local.verify()
    assert count == 1
    assert [problem.where for problem in problems] == [f"team/task@{version.digest[:12]}"]
    with pytest.raises(PrefixFormatError, match="was changed or damaged"):
        local.load("team/task")
    local.add(numbered(1), "team/task")
    assert local.verify() == (1, [])
    assert local.load("team/task").digest == numbered(1).digest


def test_a_place_that_cannot_be_reached(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "cache"))
    lost = Store("s3://nowhere/x", endpoint_url="http://127.0.0.1:9", key="a", secret="b",
                 config_kwargs={"retries": {"max_attempts": 1}, "connect_timeout": 1})  # fmt: skip
    with pytest.raises(StorageError, match="can't be reached"):
        lost.add(numbered(1), "team/task")
    with pytest.raises(ConfigError, match="nosuch"):
        Store("nosuch://x")
    with pytest.raises(ConfigError, match="hub repository is one prefix"):
        Store("hf://org/name")


def test_many_writers_of_one_version_have_one_winner(store) -> None:
    prefix, made, failed = numbered(1), [], []

    def add() -> None:
        try:
            made.append(store.add(prefix, "team/task").digest)
        except ForewordError as error:
            failed.append(error)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(set(made)) == 1
    assert store.verify() == (1, [])


def test_many_first_readers_of_a_remote_version(tmp_path, monkeypatch) -> None:
    """None is in the way of another while they fill the same cache."""
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "cache"))
    store = Store(f"memory://readers-{tmp_path.name}")
    for number in range(3):
        store.add(numbered(number), "team/task", tags=[f"v{number}"])
    read: list[bool] = []

    def look(number: int) -> None:
        read.append(store.load(f"team/task@v{number % 3}").digest == numbered(number % 3).digest)

    threads = [threading.Thread(target=look, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [True] * 12
    assert not list((tmp_path / "cache").rglob(".*"))


def test_of_two_writers_of_a_tag_on_s3_one_is_refused(server, tmp_path, monkeypatch) -> None:
    """The other comes after the comparison, before the write."""
    objects = Objects(f"s3://{BUCKET}/{tmp_path.name}", server)
    assert objects.create("tag", data=b"one")
    assert not objects.create("tag", data=b"two")
    reading = objects._files.cat_file

    def overtaken(path: str, **options: Any) -> bytes:
        data: bytes = reading(path, **options)
        objects._files.pipe_file(path, b"other")
        return data

    monkeypatch.setattr(objects._files, "cat_file", overtaken)
    assert not objects.swap("tag", data=b"mine", before=b"one")
    monkeypatch.undo()
    assert objects.read("tag", most=10) == b"other"
    assert objects.swap("tag", data=b"mine", before=b"other")
    assert objects.read("tag", most=10) == b"mine"


def test_torch_is_not_needed_to_look(local, tmp_path) -> None:
    local.add(numbered(1), "team/task")
    code = (
        "import sys; from foreword.cli.main import execute; "
        "codes = [execute(['store', *line.split()]) for line in ('list', 'show team/task', 'verify', 'list --json')]; "
        "print(codes, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "FOREWORD_STORE": local.url},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0] False", done.stderr


def test_references() -> None:
    assert parse("a/b").tag == "latest"
    assert parse("a/b@v1").tag == "v1"
    assert parse("a/b@" + "0" * 64).digest == "0" * 64
    assert str(parse("store:a/b@prod")) == "a/b@prod"
