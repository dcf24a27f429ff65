"""Many processes on one name, processes that are killed, and single flipped bytes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from foreword.errors import ForewordError
from foreword.store import Store
from store_helpers import BUCKET, numbered, s3, version_files

WORKER = Path(__file__).parent / "store_worker.py"


def started(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(WORKER), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_write_and_read_one_name(tmp_path) -> None:
    """Two processes write, two read, of different versions and of the same."""
    store = Store(tmp_path / "store")
    workers = [started("write", store.url, first, 6) for first in (0, 3)]
    workers += [started("read", store.url, 6) for _ in range(2)]
    told = []
    for worker in workers:
        out, err = worker.communicate(timeout=120)
        assert worker.returncode == 0, err
        told.append(json.loads(out.splitlines()[-1]))
    made = {digest for one in told[:2] for digest in one["made"]}
    assert len(made) == 9
    assert [one["wrong"] for one in told[2:]] == [[], []]
    assert sum(one["read"] for one in told[2:]) > 0
    assert store.verify("team/task") == (9, [])
    assert store.tags("team/task")["latest"] in made
    assert not [path for path in (tmp_path / "store").rglob(".*") if path.is_dir()]


def test_32_writers_and_32_readers(tmp_path) -> None:
    store, wrong, made, read = Store(tmp_path / "store"), [], [], []
    ended = threading.Event()

    def write(number: int) -> None:
        try:
            for turn in range(2):
                made.append(store.add(numbered((number + turn) % 40), "team/task", tags=[f"w{number}"]).digest)
        except ForewordError as error:
            wrong.append(error)

    def look() -> None:
        while not ended.is_set():
            try:
                prefix = store.load("team/task")
                time.sleep(0.02)
                read.append(prefix.digest == numbered(int(prefix.record["number"])).digest)
            except ForewordError as error:
                wrong.append(error)

    store.add(numbered(0), "team/task")
    writers = [threading.Thread(target=write, args=(number,)) for number in range(32)]
    readers = [threading.Thread(target=look) for _ in range(32)]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    ended.set()
    for thread in readers:
        thread.join()
    assert wrong == []
    assert read
    assert all(read)
    assert len(set(made)) == 33
    assert store.verify() == (33, [])
    assert len(store.tags("team/task")) == 33


@pytest.mark.parametrize(("what", "times"), [("add", 50), ("push", 50), ("push to S3", 15)])
def test_a_killed_writer_leaves_nothing_partial(tmp_path, what, times, monkeypatch) -> None:
    """SIGKILL at a random moment, 50 times (15 on slow S3): what is seen is whole, and the next writer goes on."""
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "cache"))
    with ExitStack() as held:
        options = held.enter_context(s3()) if what == "push to S3" else {}
        url = f"s3://{BUCKET}/{tmp_path.name}" if options else str(tmp_path / "store")
        monkeypatch.setenv("STORE_OPTIONS", json.dumps(options))
        worker = started("killed", url, "" if what == "add" else tmp_path / "from", times)
        out, err = worker.communicate(timeout=300)
        assert worker.returncode == 0, err
        told = json.loads(out.splitlines()[-1])
        assert told["wrong"] == []
        assert told["seen"] > 3
        store = Store(url, **options)
        store.add(numbered(99_999), "team/task")
        assert store.verify()[1] == []
    if not options:
        assert list(Path(url).rglob(".*.new-*")) == []


def test_each_flipped_byte_is_found(tmp_path) -> None:
    store, chance = Store(tmp_path / "store"), random.Random(1)
    store.add(numbered(1), "team/task", metrics={"bleu": 3.0})
    tag = Path(store.url) / "prefixes/team/task/tags/latest.json"
    files = [*version_files(store, "team/task"), tag]
    assert len(files) == 5
    for number in range(1_000):
        file = files[number % len(files)]
        data = bytearray(file.read_bytes())
        place = chance.randrange(len(data))
        before, data[place] = data[place], data[place] ^ (1 << chance.randrange(8))
        file.write_bytes(data)
        _, problems = store.verify()
        assert problems, f"byte {place} of {file.name}, {before} to {data[place]}"
        data[place] = before
        file.write_bytes(data)
    assert store.verify() == (1, [])
