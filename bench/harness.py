"""What the speed benches share: interleaved runs, medians with their spread, CPU and wall seconds, peak memory."""

from __future__ import annotations

import ctypes
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Timed = Callable[[], None]
Clock = Callable[[], float]  # CPU seconds so far


def interleaved(
    contenders: dict[str, Timed], rounds: int, warmup: int = 1, clocks: Mapping[str, Clock] | None = None
) -> dict[str, dict[str, Any]]:
    """Run every contender in turn, `rounds` times after `warmup` unmeasured ones. Per contender the medians and the
    spread [lowest, highest] of wall and CPU seconds. clocks: of those that work in another process."""
    clock_of = dict.fromkeys(contenders, time.process_time) | dict(clocks or {})
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-warmup, rounds):
        for name, run in contenders.items():
            began, used = time.perf_counter(), clock_of[name]()
            run()
            if number >= 0:
                wall[name].append(time.perf_counter() - began)
                cpu[name].append(clock_of[name]() - used)
    return {name: summary(wall[name], cpu[name]) for name in contenders}


def summary(wall: list[float], cpu: list[float]) -> dict[str, Any]:
    return {
        "wall": statistics.median(wall), "wall_spread": [min(wall), max(wall)],
        "cpu": statistics.median(cpu), "cpu_spread": [min(cpu), max(cpu)],
        "rounds": len(wall),
    }  # fmt: skip


def padded(rows: Sequence[Mapping[str, list[int]]], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Rows {"input_ids", "attention_mask", "labels"} padded on the right to the longest."""
    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        name: torch.tensor([[*row[name], *[pad] * (width - len(row[name]))] for row in rows], device=device)
        for name, pad in fill.items()
    }


class PeakMemory:
    """Peak resident memory of this process since it was made, above what it held then; Linux alone tells."""

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, so that it counts when it is used again
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
        self._before = _status("VmRSS")

    def megabytes(self) -> float:
        return (_status("VmHWM") - self._before) / 1000


def _status(name: str) -> int:
    """KB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}")


def in_new_process(*arguments: str) -> float:
    """The number that a bench script prints last, run with `arguments` in a process of its own to measure memory."""
    done = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True, timeout=600)
    return float(done.stdout.split()[-1])
