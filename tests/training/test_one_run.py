"""One run folder, one run: a second one is refused while the first lives, however the first ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import foreword
from foreword.errors import ConfigError, RunInUseError, StorageError
from foreword.files import free_name
from foreword.training.events import Started, Stepped
from foreword.training.folder import LOCK, RunFolder
from tiny import tiny_base
from training_helpers import equal, final_state, settings, write_rows

WAITING = """
import sys, time
sys.path.insert(0, sys.argv[1])
import foreword
from foreword.training import events
from pathlib import Path
from tiny import tiny_base
from training_helpers import settings

def wait(event):
    if isinstance(event, getattr(events, sys.argv[3])):
        print("there", flush=True)
        time.sleep(600)

foreword.train(tiny_base(), settings(Path(sys.argv[2]), steps=4, checkpoint_every=1), wait)
"""


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path)


@pytest.fixture
def living(rows) -> Iterator[Callable[[str], subprocess.Popen]]:
    """Start a run in a process of its own, in `rows`/run, and wait until it is at an event, where it stays."""
    started = []

    def start(event: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", WAITING, str(Path(__file__).parent.parent), str(rows), event],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "there"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_run_is_refused_until_the_first_is_killed(rows, living) -> None:
    """Killed before its first checkpoint, so that another can begin in the same folder."""
    base, config = tiny_base(), settings(rows, steps=1)
    process = living("Started")
    with pytest.raises(RunInUseError, match=r"another run is going on in .*run; wait for it or stop it"):
        foreword.train(base, config)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (rows / "run" / LOCK).exists()
    assert foreword.train(base, config).steps == 1
    assert not (rows / "run" / LOCK).exists()


def test_a_living_run_is_not_resumed(rows, living) -> None:
    base, changes = tiny_base(), dict[str, Any](steps=4, checkpoint_every=1)
    process = living("Stepped")
    for path in (rows / "run", rows / "run" / "checkpoints" / "step-000000"):
        with pytest.raises(RunInUseError, match=r"another run is going on in .*run;"):
            foreword.train(base, settings(rows, resume=str(path), **changes))
    with pytest.raises(RunInUseError):  # and not "resume it", which it can't be
        foreword.train(base, settings(rows, **changes))
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(ConfigError, match="exists and is not empty"):
        foreword.train(base, settings(rows, **changes))
    resumed = foreword.train(base, settings(rows, resume=str(rows / "run"), **changes))
    whole = foreword.train(base, settings(rows, "whole", **changes))
    assert equal(final_state(resumed.run), final_state(whole.run))


@pytest.mark.parametrize("own_thread", [True, False])
def test_within_one_process_too(rows, own_thread) -> None:
    changes, refused = dict[str, Any](steps=2, checkpoint_every=1), []

    def join() -> None:
        for config in (settings(rows, **changes), settings(rows, resume=str(rows / "run"), **changes)):
            with pytest.raises(RunInUseError):
                foreword.train(tiny_base(), config)
            refused.append(config)

    def try_to_join(event: object) -> None:
        if isinstance(event, Stepped) and own_thread:
            join()
        elif isinstance(event, Stepped):
            thread = threading.Thread(target=join)
            thread.start()
            thread.join()

    foreword.train(tiny_base(), settings(rows, **changes), try_to_join)
    assert len(refused) == 4


def test_a_folder_is_free_after_an_error(rows) -> None:
    base, config = tiny_base(), settings(rows, steps=1)

    def fail(event: object) -> None:
        raise ValueError("an observer's own")

    with pytest.raises(ValueError, match="own"):
        foreword.train(base, config, fail)
    assert foreword.train(base, config).steps == 1
    with pytest.raises(ConfigError, match="not empty"):
        foreword.train(base, config)
    assert foreword.train(base, settings(rows, steps=1, resume=str(rows / "run"))).steps == 1


def test_runs_without_a_name_get_names_of_their_own(rows, monkeypatch) -> None:
    monkeypatch.chdir(rows)
    base = tiny_base()
    runs: list[Any] = []

    def another(event: object) -> None:
        if isinstance(event, Started) and not runs:
            runs.append(None)
            runs[0] = foreword.train(tiny_base(), settings(rows, steps=1, output=None)).run

    result = foreword.train(base, settings(rows, steps=1, output=None), another)
    assert (str(result.run), str(runs[0])) == ("runs/train-direct-1", "runs/train-direct-2")


def test_a_name_that_is_taken_in_between_is_not_used_twice(rows, monkeypatch) -> None:
    """Two processes may find the same free name; only one can make the folder."""
    monkeypatch.chdir(rows)
    found: list[Path] = []

    def taken_first(stem: Path) -> Path:
        path = free_name(stem)
        if not found:
            path.mkdir(parents=True)
        found.append(path)
        return path

    monkeypatch.setattr("foreword.training.folder.free_name", taken_first)
    assert foreword.train(tiny_base(), settings(rows, steps=1, output=None)).run == found[1] != found[0]


@pytest.mark.parametrize("what", ["a folder", "a link to itself"])
def test_a_lock_that_can_not_be_opened_gets_a_typed_error(rows, what) -> None:
    (rows / "run").mkdir()
    if what == "a folder":
        (rows / "run" / LOCK).mkdir()
    else:
        (rows / "run" / LOCK).symlink_to(rows / "run" / LOCK)
    with pytest.raises(StorageError, match=r"run\.lock can't be written"):
        foreword.train(tiny_base(), settings(rows, steps=1))


def test_two_folders_are_held_at_once(tmp_path) -> None:
    one, other, again = RunFolder(tmp_path), RunFolder(tmp_path / "."), RunFolder(tmp_path)
    one.hold()
    for folder in (other, again):
        with pytest.raises(RunInUseError):
            folder.hold()
    one.release()
    other.hold()
    other.release()
    assert list(tmp_path.iterdir()) == []
