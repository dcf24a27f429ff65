"""A version goes to a repository of the hub and comes back unchanged; what is there is whole at every moment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from foreword.errors import ConfigError, PrefixFormatError, StorageError, UnknownPrefixError
from foreword.store import Store
from hub_helpers import NAME, REPOSITORY, TO, added, contents, with_head
from hub_stand_in import Hub, using_hub
from prefix_helpers import small

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # how the client sends LFS files


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    with using_hub(tmp_path, monkeypatch) as hub:
        yield hub


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def other(tmp_path) -> Store:
    """The store of someone else, who pulls."""
    return Store(tmp_path / "other")


def test_what_is_pushed_comes_back(hub, store, other, tmp_path) -> None:
    version = store.add(with_head(tmp_path), NAME, tags=["prod"], metrics={"bleu": 12.5})
    assert store.push(f"{NAME}@prod", TO) == version
    assert hub.files(REPOSITORY) == hub.files(REPOSITORY, "prod") == contents(store, NAME)
    assert "head/head.safetensors" in hub.files(REPOSITORY)
    assert other.pull(f"{NAME}@prod", TO) == version
    assert other.tags(NAME) == {"prod": version.digest}
    assert contents(other, f"{NAME}@prod") == contents(store, NAME)
    assert other.load(f"{NAME}@prod").digest == small(5).digest
    assert other.pull(NAME, TO) == version
    assert other.tags(NAME) == {"latest": version.digest, "prod": version.digest}


def test_a_new_repository_is_private(hub, store, other, monkeypatch) -> None:
    version = added(store)
    store.push(NAME, TO)
    assert hub.repositories[REPOSITORY].private
    assert list(hub.repositories[REPOSITORY].branches) == ["main"], "latest is main"
    hub.readers.add("reader")
    monkeypatch.setenv("HF_TOKEN", "reader")
    assert other.pull(NAME, TO) == version
    with pytest.raises(StorageError, match="403"):
        store.push(NAME, TO)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UnknownPrefixError, match="private and the token"):
        other.pull(NAME, TO)


def test_large_files_go_by_lfs_and_tokens_to_the_hub_alone(hub, store, other) -> None:
    added(store)
    store.push(NAME, TO)
    other.pull(NAME, TO)
    assert any(line.startswith("PUT /lfs/") for line in hub.seen)
    assert any(line.startswith("GET /lfs/") for line in hub.seen)
    assert hub.strayed == [], "the files' own host sees no token"


def test_a_second_push_moves_main_and_the_tag(hub, store, other, tmp_path) -> None:
    first = store.add(with_head(tmp_path), NAME, tags=["prod", "old"])
    store.push(f"{NAME}@old", TO)
    store.push(f"{NAME}@prod", TO)
    second = added(store, 4, tags=("prod",))
    store.push(f"{NAME}@prod", TO)
    assert hub.files(REPOSITORY) == hub.files(REPOSITORY, "prod") == contents(store, NAME)
    assert "head/head.json" not in hub.files(REPOSITORY), "the former head is gone"
    assert other.pull(f"{NAME}@prod", TO) == other.pull(NAME, TO) == second
    assert other.pull(f"{NAME}@old", TO) == first
    assert contents(other, f"{NAME}@old") == contents(store, f"{NAME}@old")
    store.push(f"{NAME}@old", TO)
    assert hub.files(REPOSITORY) == contents(store, f"{NAME}@old"), "main is what was pushed last"
    assert hub.files(REPOSITORY, "prod") == contents(store, f"{NAME}@prod")


def test_a_version_that_is_there_already_makes_no_commit(hub, store) -> None:
    added(store, tags=("prod",))
    for _ in range(2):
        store.push(f"{NAME}@prod", TO)
    assert [commit.title for commit in hub.repositories[REPOSITORY].commits.values()][1:] == [
        f"{NAME}@{store.version(NAME).digest[:12]}"
    ]


def test_every_version_can_be_pulled_by_its_digest(hub, store, other) -> None:
    versions = [added(store, length) for length in (2, 3, 4, 5)]
    for version in versions:
        store.push(f"{NAME}@{version.digest}", TO)
    for version in versions:
        assert other.pull(f"{NAME}@{version.digest[:9]}", TO) == version
        assert other.pull(f"{NAME}@sha256:{version.digest}", TO) == version
    assert other.tags(NAME) == {}
    wrong = versions[0].digest[:12] + ("0" * 52 if versions[0].digest[12] != "0" else "1" * 52)
    for unknown in ("0" * 64, wrong):
        with pytest.raises(UnknownPrefixError, match="has no version"):
            other.pull(f"{NAME}@{unknown}", TO)


@pytest.mark.parametrize(
    "url", ["hf://", "hf://name", "hf://a/b/c", "hf://org/na me", "hf://org/..", "hf:///org/name", "hf://org/name@v1"]
)
def test_what_is_no_repository_is_refused(hub, store, other, url) -> None:
    added(store)
    with pytest.raises(ConfigError, match="hf://"):
        store.push(NAME, url)
    with pytest.raises(ConfigError, match="hf://"):
        other.pull(NAME, url)
    assert hub.seen == []


def test_the_hubs_own_name_for_the_newest_is_no_tag(hub, store, other) -> None:
    added(store, tags=("main",))
    with pytest.raises(ConfigError, match="newest version"):
        store.push(f"{NAME}@main", TO)
    assert hub.repositories == {}
    store.push(NAME, TO)
    with pytest.raises(ConfigError, match="newest version"):
        other.pull(f"{NAME}@main", TO)


def test_a_repository_is_of_one_prefix(hub, store, other) -> None:
    added(store)
    added(store, name="demo/other")
    store.push(NAME, TO)
    before = hub.files(REPOSITORY)
    with pytest.raises(ConfigError, match="holds demo/summary; push demo/other"):
        store.push("demo/other", TO)
    assert hub.files(REPOSITORY) == before
    with pytest.raises(PrefixFormatError, match="holds demo/summary, not demo/other"):
        other.pull("demo/other", TO)


def test_a_repository_that_is_no_prefix_is_left_alone(hub, store, other) -> None:
    hub.write(REPOSITORY, {"README.md": b"a model", "config.json": b"{}"})
    added(store)
    with pytest.raises(UnknownPrefixError, match="no prefix of Foreword"):
        other.pull(NAME, TO)
    with pytest.raises(ConfigError, match=r"has config.json and is no prefix"):
        store.push(NAME, TO)
    hub.write(REPOSITORY, {"config.json": None, ".gitignore": b"*.json\n"})
    with pytest.raises(ConfigError, match=r"has a .gitignore"):
        store.push(NAME, TO)
    hub.write(REPOSITORY, {".gitignore": None})
    store.push(NAME, TO)
    assert hub.files(REPOSITORY) == contents(store, NAME)


def test_what_is_not_there_is_unknown(hub, store, other) -> None:
    with pytest.raises(UnknownPrefixError, match="there is no hf://org/summary"):
        other.pull(NAME, TO)
    added(store)
    store.push(NAME, TO)
    with pytest.raises(UnknownPrefixError, match="has no tag prod; leave the tag out"):
        other.pull(f"{NAME}@prod", TO)
    assert other.names() == []


def test_without_a_token_nothing_is_pushed(hub, store, monkeypatch) -> None:
    added(store)
    for token, status in ((None, "401"), ("stranger", "403")):
        monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(StorageError, match=rf"{status}.* the token \(HF_TOKEN\)"):
            store.push(NAME, TO)
    assert hub.repositories == {}


def test_a_file_that_is_there_already_stays_though_another_push_removes_it(hub, store, tmp_path) -> None:
    """The client sends only what differs from what it saw; the commit must be refused where that is there no more."""
    run = with_head(tmp_path)
    store.push(f"{NAME}@{store.add(run, NAME).digest}", TO)
    small(6).save(run)  # beside the same head
    wanted = store.add(run, NAME)
    without = added(store, 4)
    hub.before("commit/main", lambda: store.push(f"{NAME}@{without.digest}", TO))
    store.push(f"{NAME}@{wanted.digest}", TO)
    assert hub.files(REPOSITORY) == contents(store, f"{NAME}@{wanted.digest}")
