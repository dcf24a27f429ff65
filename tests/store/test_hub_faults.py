"""Pushes and pulls that fail, are killed, or meet another: the hub shows whole versions, and a store gets no others."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from foreword.errors import PrefixFormatError, StorageError
from foreword.sealing import sealed
from foreword.store import Store
from foreword.versions.version import FILE, MOST, Version
from hub_helpers import NAME, REPOSITORY, TENSORS, TO, added, contents
from hub_stand_in import Hub, using_hub

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


FRESH = ("POST /api/repos", "branch/prod")  # asked by a first push only
PUSHING = (*FRESH, "validate-yaml", "preupload", "objects/batch", "PUT /lfs", "verify", "commit/main", "commit/prod")
PULLING = ("revision/prod", "resolve/.*version.json", "/lfs")
FAULTS = ("error", "cut", "nonsense")
# nothing in the answer to cut; nothing in it that the client reads
NO_FAULT = {("cut", "PUT /lfs"), ("nonsense", "validate-yaml"), ("nonsense", "verify"), ("nonsense", "branch/prod")}


def spoil(hub: Hub, what: str, pattern: str) -> None:
    faults: dict[str, Callable[..., None]] = {"error": hub.fail, "cut": hub.cut, "nonsense": hub.babble}
    faults[what](pattern, times=10)


@pytest.mark.parametrize(
    ("what", "line"), [(what, line) for what in FAULTS for line in PUSHING if (what, line) not in NO_FAULT]
)
def test_a_push_that_fails_leaves_a_whole_version(hub, store, other, what, line) -> None:
    first = added(store, 3, tags=("prod",))
    if line not in FRESH:
        store.push(f"{NAME}@prod", TO)
    second = added(store, 4, tags=("prod",))
    hub.seen.clear()
    spoil(hub, what, line)
    with pytest.raises(StorageError, match="can't be used"):
        store.push(f"{NAME}@prod", TO)
    assert any(line in request for request in hub.seen)
    hub.faults.clear()
    held = [branch for branch in hub.branches(REPOSITORY) if hub.files(REPOSITORY, branch)]
    assert held or line == "POST /api/repos"
    for branch in held:
        assert other.pull(f"{NAME}@{branch.replace('main', 'latest')}", TO) in (first, second)
    store.push(f"{NAME}@prod", TO)
    assert hub.files(REPOSITORY) == hub.files(REPOSITORY, "prod") == contents(store, NAME)


@pytest.mark.parametrize("line", PULLING)
@pytest.mark.parametrize("what", FAULTS)
def test_a_pull_that_fails_adds_nothing(hub, store, other, what, line) -> None:
    version = added(store, tags=("prod",))
    store.push(f"{NAME}@prod", TO)
    spoil(hub, what, f"GET .*{line}")
    with pytest.raises((StorageError, PrefixFormatError)):
        other.pull(f"{NAME}@prod", TO)
    assert other.names() == []
    hub.faults.clear()
    assert other.pull(f"{NAME}@prod", TO) == version


@pytest.mark.parametrize("path", [TENSORS, "prefix/manifest.json", "README.md", FILE])
def test_flipped_bytes_are_refused(hub, store, other, path) -> None:
    added(store)
    store.push(NAME, TO)
    data = bytearray(hub.files(REPOSITORY)[path])
    data[len(data) // 2] ^= 1
    hub.write(REPOSITORY, {path: bytes(data)})
    with pytest.raises(PrefixFormatError, match=path):
        other.pull(NAME, TO)
    assert other.names() == []
    store.push(NAME, TO)
    assert other.pull(NAME, TO) == store.version(NAME), "pushed again, it is whole"


def test_flipped_bytes_in_the_hubs_storage_are_refused(hub, store, other) -> None:
    added(store)
    store.push(NAME, TO)
    ((oid, data),) = hub.objects.items()
    hub.objects[oid] = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(PrefixFormatError, match=TENSORS):
        other.pull(NAME, TO)
    assert other.names() == []


def test_a_file_that_is_missing_or_cut_is_refused(hub, store, other) -> None:
    added(store)
    store.push(NAME, TO)
    whole = hub.files(REPOSITORY)[TENSORS]
    for data in (None, whole[:-4], whole + b"more"):
        hub.write(REPOSITORY, {TENSORS: data})
        with pytest.raises(PrefixFormatError, match=TENSORS):
            other.pull(NAME, TO)
    assert other.names() == []


def test_a_huge_file_is_not_downloaded(hub, store, other) -> None:
    added(store)
    store.push(NAME, TO)
    sent = hub.flood("GET .*version.json", announced=2**40)
    with pytest.raises(PrefixFormatError, match=r"1,099,511,627,776 bytes, not at most"):
        other.pull(NAME, TO)
    hub.faults.clear()
    endless = hub.flood("GET .*version.json", announced=None)
    with pytest.raises(PrefixFormatError, match=r"at least .* bytes, not at most"):
        other.pull(NAME, TO)
    assert max(*sent, *endless) < 64 * MOST, "the client hung up"
    hub.faults.clear()
    hub.flood("GET /lfs/", announced=None)
    with pytest.raises(PrefixFormatError, match=f"{TENSORS} has at least"):
        other.pull(NAME, TO)
    assert other.names() == []


def test_a_version_that_names_files_elsewhere_is_refused(hub, store, other) -> None:
    added(store)
    store.push(NAME, TO)
    value = json.loads(hub.files(REPOSITORY)[FILE])
    value["files"]["../../../out"] = value["files"]["README.md"]
    value.pop("digest")
    hub.write(REPOSITORY, {FILE: json.dumps(sealed(value)).encode()})
    with pytest.raises(PrefixFormatError, match="must name"):
        other.pull(NAME, TO)


def test_another_push_between_two_requests_makes_no_mixture(hub, store, other) -> None:
    """One that comes between looking and committing is seen by the hub; the second push is done after it."""
    first, second = added(store, 3), added(store, 4)
    for line in ("preupload/main", "commit/main"):
        hub.before(line, lambda: store.push(f"{NAME}@{second.digest}", TO))
        store.push(f"{NAME}@{first.digest}", TO)
        assert hub.files(REPOSITORY) == contents(store, f"{NAME}@{first.digest}")
        titles = [commit.title for commit in hub.repositories[REPOSITORY].commits.values()]
        assert titles[-2:] == [f"{NAME}@{version.digest[:12]}" for version in (second, first)]
    hub.before("resolve/.*README", lambda: store.push(f"{NAME}@{second.digest}", TO))
    assert other.pull(NAME, TO) == first, "all files are of one commit"
    assert other.pull(NAME, TO) == second


def test_a_repository_that_another_push_makes_first_is_used(hub, store) -> None:
    first, second = added(store, 3), added(store, 4)
    hub.before("POST /api/repos/create", lambda: store.push(f"{NAME}@{second.digest}", TO))
    store.push(f"{NAME}@{first.digest}", TO)
    assert hub.files(REPOSITORY) == contents(store, f"{NAME}@{first.digest}")


def test_a_version_that_was_there_but_is_replaced_meanwhile_is_pushed_anew(hub, store) -> None:
    """The client makes no commit where nothing changes, and names the newest, which may be another's by then."""
    first, second = added(store, 3), added(store, 4)
    store.push(f"{NAME}@{first.digest}", TO)

    def after_looking() -> None:
        hub.before("GET .*/revision/main", lambda: store.push(f"{NAME}@{second.digest}", TO))

    hub.before("preupload/main", after_looking)
    store.push(f"{NAME}@{first.digest}", TO)
    assert hub.files(REPOSITORY) == contents(store, f"{NAME}@{first.digest}")


def test_what_is_pushed_all_the_time_is_given_up(hub, store) -> None:
    added(store)
    store.push(NAME, TO)
    hub.fail("commit/main", status=412, times=100)
    added(store, 4)
    with pytest.raises(StorageError, match="pushed to by others"):
        store.push(NAME, TO)


def test_pushes_at_the_same_time_leave_whole_versions(hub, store, other) -> None:
    versions = [added(store, length, tags=("prod",)) for length in (2, 3, 4)]
    whole = {version.digest: contents(store, f"{NAME}@{version.digest}") for version in versions}
    errors: list[Exception] = []

    def pushing(version: Version) -> None:
        mine = Store(Path(store.url).parent / f"of-{version.digest[:8]}")
        store.push(f"{NAME}@{version.digest}", mine.url)
        mine.tag(f"{NAME}@{version.digest}", "prod")
        try:
            for _ in range(2):
                mine.push(f"{NAME}@prod", TO)
        except StorageError as error:
            errors.append(error)

    threads = [threading.Thread(target=pushing, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    made = hub.repositories[REPOSITORY]
    for oid, commit in made.commits.items():
        if commit.parent is not None:
            assert hub.files(REPOSITORY, oid) in whole.values(), commit.title
    assert {other.pull(f"{NAME}@prod", TO).digest, other.pull(NAME, TO).digest} <= set(whole)


def test_a_hub_that_is_out_of_reach_is_said_soon(hub, store, other, monkeypatch) -> None:
    added(store)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: pytest.fail("retries"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for go in (lambda: store.push(NAME, TO), lambda: other.pull(NAME, TO)):
        with pytest.raises(StorageError, match="can't be reached; look at the network"):
            go()


def test_a_hub_that_does_not_answer_is_not_waited_for(hub, store, other, monkeypatch) -> None:
    added(store)
    monkeypatch.setattr("foreword.store.hub_client.TIMEOUT", 0.2)
    waiting = threading.Event()
    hub.before("GET", lambda: waiting.wait(30), times=10)
    for go in (lambda: store.push(NAME, TO), lambda: other.pull(NAME, TO)):
        with pytest.raises(StorageError, match="timed out"):
            go()
    waiting.set()


def test_offline_nobody_is_asked(hub, store, other, monkeypatch) -> None:
    from huggingface_hub import constants

    added(store)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for go in (lambda: store.push(NAME, TO), lambda: other.pull(NAME, TO)):
        with pytest.raises(StorageError, match="HF_HUB_OFFLINE is set"):
            go()
    assert hub.seen == []


def test_nothing_stays_in_the_temporary_folder(hub, store, other, tmp_path, monkeypatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    added(store)
    store.push(NAME, TO)
    other.pull(NAME, TO)
    hub.cut("GET /lfs")
    shutil.rmtree(other.url)
    with pytest.raises(StorageError):
        other.pull(NAME, TO)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_push_that_is_killed_leaves_whole_versions(hub, store, other) -> None:
    """kill -9 at ten moments of a process that pushes all the time, the first before and in its first push."""
    versions = [added(store, length) for length in (3, 4)]
    whole = [contents(store, f"{NAME}@{version.digest}") for version in versions]
    command = [sys.executable, str(Path(__file__).with_name("hub_worker.py")), store.url, TO, NAME]
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    chance, killed = random.Random(0), 0
    for turn in range(10):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "pushing\n"
            begun = len(hub.seen)
            wanted = begun + turn + chance.randrange(20)
            while len(hub.seen) < wanted and process.poll() is None:
                threading.Event().wait(0.002)
            killed += process.poll() is None
            process.kill()
        for branch in hub.branches(REPOSITORY):
            assert hub.files(REPOSITORY, branch) in (*whole, {}), f"{branch} after {hub.seen[begun:]}"
            if hub.files(REPOSITORY, branch):
                assert other.pull(f"{NAME}@{branch.replace('main', 'latest')}", TO) in versions
    assert killed == 10
    assert hub.branches(REPOSITORY) == ["main", "prod"]
    store.push(f"{NAME}@{versions[0].digest}", TO)
    assert hub.files(REPOSITORY) == whole[0], "what was killed is in nobody's way"
