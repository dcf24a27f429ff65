"""A thousand saved prefixes: first use, switching, what stays in memory, and whether the base notices them.

    python bench/pool.py [--prefixes 1000] [--length 64] [--out FILE]

SmolLM2-135M in float32; prefixes of 64 virtual tokens in float16, as training saves them. First use reads the files,
checks them against their manifest and the base, and casts. The files are in the page cache. Goals: 20 ms for first
use, 0.2 ms for a switch.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

import foreword
from results import Results, machine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefixes", type=int, default=1000)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("bench/results/pool.json"))
    arguments = parser.parse_args()
    results = Results(arguments.out, {"machine": machine(), "length": arguments.length})
    base = foreword.load("smollm2-135m", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        first = foreword.Prefix.from_text("Say it in one sentence. " * 20, base, length=arguments.length)
        first.to(torch.float16).save(f"{folder}/0000")
        for number in range(1, arguments.prefixes):
            shutil.copytree(f"{folder}/0000", f"{folder}/{number:04d}")
        budget = 100 * first.num_bytes
        measure(base, foreword.PrefixPool(base, folder, max_bytes=budget), arguments.prefixes, budget, results)
    return 0


def measure(base: foreword.Base, pool: foreword.PrefixPool, count: int, budget: int, results: Results) -> None:
    names = [f"{number:04d}" for number in range(count)]
    ids = torch.arange(200, 216).view(16, 1)

    def forward() -> None:
        with torch.no_grad():
            base.model(input_ids=ids, use_cache=False)

    def switch(name: str) -> None:
        base.switch(pool[name])

    results.put("base forward, none known", milliseconds([forward] * 30))
    with base.attach(pool[names[0]]):
        forward()  # what a switch makes ready is what was used before
        pool.forget(names[0])
        results.put("first use", milliseconds([partial(switch, name) for name in names]))
        results.put("switch", milliseconds([partial(switch, name) for name in pool.resident * 10]))
    results.put("resident", {"bytes": pool.num_bytes, "budget": budget, "kept": len(pool.resident), "known": count})
    results.put("base forward, all known", milliseconds([forward] * 30))


def milliseconds(runs: Sequence[Callable[[], None]]) -> dict[str, float]:
    seconds = []
    for run in runs:
        began = time.perf_counter()
        run()
        seconds.append(1000 * (time.perf_counter() - began))
    return {
        "median_ms": statistics.median(seconds),
        "p95_ms": statistics.quantiles(seconds, n=20)[-1],
        "runs": len(runs),
    }


if __name__ == "__main__":
    sys.exit(main())
