"""Two gloo processes on CPU give the single process's losses and weights; the launch itself is the users' one.

One launch runs all jobs (see `jobs`), and every test looks at its part of what they left.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import foreword
from foreword.errors import ConfigError
from foreword.training.checkpoint import list_checkpoints
from training_helpers import copy_until, debris, history_of, settings, write_rows

sys.path.insert(0, str(Path(__file__).parent))
from jobs import COMMON, JOBS, make_base, with_heads

SCRIPT = Path(__file__).parent / "jobs.py"
LAUNCH = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
]
SINGLE = {name: changes for name, changes in JOBS.items() if name != "resumed"}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The runs of one process (`one …`), of two (`…`), and what each of the two reported."""
    folder = write_rows(tmp_path_factory.mktemp("processes"), uneven=True)
    base = make_base()
    for name, changes in SINGLE.items():
        foreword.train(base, settings(folder, f"one {name}", **COMMON, **changes))
    foreword.train(base, with_heads(folder, "one heads"))
    copy_until(folder / "one plain", folder / "to resume", 4)
    done = subprocess.run([*LAUNCH, str(SCRIPT), str(folder)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def reports(place: Path) -> list[dict]:
    return [json.loads((place / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def assert_same_run(one: Path, other: Path) -> None:
    """Losses, weights and optimizer state of every step within 1e-9."""
    pairs = list(zip(history_of(one), history_of(other), strict=True))
    assert len(pairs) == 13
    for a, b in pairs:
        assert a.keys() == b.keys()
        tolerance = 1e-6 if "validation_loss" in a else 1e-9  # validation measures the prefix stored as float32
        assert all(abs(a[name] - b[name]) <= tolerance for name in a)
    checkpoints = [list_checkpoints(run / "checkpoints") for run in (one, other)]
    assert len(checkpoints[0]) == 11
    for a, b in zip(*checkpoints, strict=True):
        first, second = (load_file(path / "state.safetensors") for path in (a, b))
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            if not name.startswith("random."):
                assert torch.allclose(tensor, second[name], rtol=0, atol=1e-9), name


@pytest.mark.parametrize("name", SINGLE)
def test_two_processes_are_one_run(place, name) -> None:
    assert_same_run(place / f"one {name}", place / name)
    assert debris(place / name) == []


def test_heads_that_a_batch_does_not_use_are_left_alone_by_both(place) -> None:
    assert_same_run(place / "one heads", place / "heads")


def test_a_run_of_one_goes_on_with_two_and_back(place) -> None:
    assert_same_run(place / "one plain", place / "to resume")
    back = copy_until(place / "plain", place / "back to one", 6)
    foreword.train(make_base(), settings(place, resume=str(back), **COMMON, **JOBS["plain"]))
    assert_same_run(place / "one plain", back)


@pytest.mark.parametrize("name", SINGLE)
def test_rows_are_split_without_overlap_or_loss(place, name) -> None:
    size, parts = JOBS[name]["batch_size"], JOBS[name].get("accumulation", 1)
    own = [report[name]["rows"] for report in reports(place)]
    steps = [[row for part in visited for row in part] for visited in own]
    together = sorted(steps[0] + steps[1])
    base = make_base()
    seen: list[str] = []
    from jobs import watched

    from foreword.tasks import lm

    with pytest.MonkeyPatch.context() as patched:
        batches: list[list[str]] = []
        patched.setattr(lm, "collate", watched(lm.collate, batches))
        foreword.train(base, settings(place, f"rows of {name}", **COMMON, **JOBS[name]))
        seen = [row for batch in batches for row in batch]
    assert together == sorted(seen)
    assert len(seen) >= 10 * min(size, 3)
    if size > parts:
        assert abs(len(steps[0]) - len(steps[1])) <= 10


def test_errors_of_one_process_stop_both(place) -> None:
    first, second = reports(place)
    assert first["taken"][0] == "ConfigError"
    assert second["taken"][0] == "TrainingError"
    assert "not empty" in second["taken"][1]
    assert [first["in use"][0], second["in use"][0]] == ["RunInUseError", "TrainingError"]
    assert "another run is going on in" in second["in use"][1]
    for report in (first, second):
        assert report["nan"][0] == "NonFiniteError"
        assert "step 3: the loss is not finite" in report["nan"][1]
        assert report["signal"][0] == "InterruptedRunError"
        assert "SIGTERM after step 4 of 10" in report["signal"][1]
    assert list_checkpoints(place / "signal" / "checkpoints")[-1].name == "step-000004"


def test_a_full_disk_of_the_main_process_stops_both(place) -> None:
    """And both can go on with another run afterwards: no one is left waiting."""
    first, second = reports(place)
    assert first["disk"] == ["StorageError", "checkpoints can't be written: No space left on device"]
    assert second["disk"][0] == "TrainingError"
    assert "main process could not write" in second["disk"][1]
    assert [report["after"][0] for report in (first, second)] == ["nothing", "nothing"]
    assert_same_run(place / "one plain", place / "after")


def test_a_sharded_base_gives_the_same_run(place) -> None:
    """FSDP2: half of the frozen weights here, half there; the prefix on both."""
    assert_same_run(place / "one accumulated", place / "sharded")
    assert_same_run(place / "one fewer rows than processes", place / "sharded, one row")
    for report in reports(place):
        assert report["sharded"]["refused"][0] == "ConfigError"
        assert "quantised" in report["sharded"]["refused"][1]
        assert report["sharded"]["held"] <= 0.51 * report["sharded"]["before"]


def test_sharding_needs_several_processes(tmp_path) -> None:
    rows = write_rows(tmp_path)
    with pytest.raises(ConfigError, match="shard_base"):
        foreword.train(make_base(), settings(rows, shard_base=True))
