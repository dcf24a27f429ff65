"""The speed benches' own arithmetic, and the GPU bench as far as it goes on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import elsewhere
import gpu
import growth
import harness
import time_to_loss
from conftest import has
from foreword.data import Example
from growth import Point

ROOT = Path(__file__).parents[2]
needs_peft = pytest.mark.skipif(not has("peft"), reason="peft is not installed")


def test_contenders_run_in_turn_and_warm_up() -> None:
    order: list[str] = []
    found = harness.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warmup=1)
    assert order == ["a", "b"] * 4
    assert {name: cell["rounds"] for name, cell in found.items()} == {"a": 3, "b": 3}


def test_seconds_are_medians_with_their_spread() -> None:
    waits = iter([0.0, 0.03, 0.01, 0.02])
    cell = harness.interleaved({"a": lambda: time.sleep(next(waits))}, rounds=3)["a"]
    assert 0.02 <= cell["wall"] < 0.03
    assert cell["wall_spread"][0] < cell["wall"] < cell["wall_spread"][1]
    assert cell["cpu"] < 0.01


def test_peak_memory_is_above_what_was_there() -> None:
    kept = torch.ones(5_000_000)
    peak = harness.PeakMemory()
    gone = torch.ones(20_000_000)  # 80 MB
    del gone
    assert 70 < peak.megabytes() < 120
    assert len(kept)


def test_when_a_loss_is_reached() -> None:
    curve = {"0": 3.0, "5": 2.0, "10": 1.4, "15": 1.5}
    assert time_to_loss.reached(curve, 1.45) == 10
    assert time_to_loss.reached(curve, 1.0) is None


def test_work_counts_weights_and_keys() -> None:
    one = growth.work("decoding", Point(batch=1, layers=1, tokens=0, length=0))
    assert one == 576 * 49152 + 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536
    longer = growth.work("decoding", Point(batch=1, layers=1, tokens=0, length=10))
    assert longer - one == 2 * 576 * 10
    assert growth.work("training", Point(batch=4)) == 2 * growth.work("training", Point(batch=2))


@pytest.mark.parametrize("who", ["limit", "foreword", "foreword, checkpointed", "peft prefix"])
@needs_peft
def test_the_gpu_bench_is_ready(who) -> None:
    """Its kernels' parity, and each contender's step, on the CPU with a tiny model."""
    base = gpu.base_of("tiny", torch.device("cpu"))
    cell = gpu.measure(base, who, gpu.rows_of(3, 40), 8, repeats=1)
    assert cell["tokens_per_second"] > 0


@needs_peft
def test_the_gpu_bench_runs_as_a_script(tmp_path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--shapes", "tiny", "--device", "cpu"]
    command += ["--sequences", "32", "--lengths", "4", "--repeats", "1", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    cells = json.loads(out.read_text())["cells"]
    assert cells["kernels against the reference"]["worst_gradient"] < 1e-4
    assert len(cells) == 5


def test_each_contender_has_its_own_clock() -> None:
    ticks = iter([0.0, 5.0, 7.0, 7.0, 8.0])  # the round that warms up needs no end
    found = harness.interleaved({"a": lambda: None}, rounds=2, clocks={"a": lambda: next(ticks)})
    assert found["a"]["cpu_spread"] == [1.0, 2.0]


WORKER = """
import json, sys
print("a greeting")
sum(range(10**7))  # time that its clock shows
print("ready", flush=True)
for line in sys.stdin:
    rows = json.loads(line)
    if len(rows) > 1:
        sys.exit(3)
    print(json.dumps({"loss": 1.0, "megabytes": len(rows[0]["input_ids"])}), flush=True)
"""


def test_a_contender_elsewhere_answers_or_is_named(tmp_path, monkeypatch) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    monkeypatch.setattr(elsewhere, "WORKER", worker)
    row = Example((1, 2), (3,), "a", "b", ("b",), "x:1")
    base = gpu.base_of("tiny", torch.device("cpu"))
    with elsewhere.Elsewhere(base, sys.executable, 4) as other:
        other([row])
        assert other.megabytes == 3
        assert other.clock() > 0
        with pytest.raises(RuntimeError, match=r"worker.py ended with 3"):
            other([row, row])
