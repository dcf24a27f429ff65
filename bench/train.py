"""Seconds, memory and useful tokens of a training step, beside the limit and beside PEFT, in one interleaved run.

    FOREWORD_DATA=../shared/data python bench/train.py [--data e2e java-csharp] [--rounds 5] [--adapters PYTHON]
    [--out FILE]

SmolLM2-135M in float32, 32 virtual tokens, global batch 16. The limit is the frozen model's forward and its backward
towards inputs only, on real tokens alone, with the loss at target positions alone. Every contender updates on the same
rows: each round is a block of batches, which Foreword takes sorted by length within the block, as its training does,
and PEFT in random order, as Transformers' Trainer does. `times` is a block's seconds over the limit's, medians of the
rounds. Peak memory is of a process of its own, above the loaded model. Adapter-hub's `adapters` needs Transformers
4.57: it works in a process with an interpreter of its own, `--adapters`, which `make bench` sets up, beside the limit
alone; without one it is left out.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import contenders
import elsewhere
import foreword
from contenders import Step
from elsewhere import Elsewhere
from foreword.data import Example
from harness import PeakMemory, in_new_process, interleaved
from results import Results, data_folder, machine

BATCH, LENGTH = 16, 32
BLOCK = {"e2e": 4, "java-csharp": 1}  # batches of a block
NAMES = ("limit", *contenders.OURS, "peft prefix", "peft lora", elsewhere.NAME)
PEERS = NAMES[-3:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(BLOCK), choices=list(BLOCK))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--adapters", help="an interpreter that has Adapter-hub's adapters")
    parser.add_argument("--memory", help="measure the peak memory of this contender alone, in MB")
    parser.add_argument("--out", type=Path, default=Path("bench/results/train.json"))
    arguments = parser.parse_args()
    data = data_folder(*arguments.data)
    base = foreword.load("smollm2-135m", device="cpu")
    if arguments.memory:
        print(memory(base, data, arguments.data[0], arguments.memory))
        return 0
    results = Results(arguments.out, {"machine": machine(), "batch": BATCH, "length": LENGTH})
    for name in arguments.data:
        if f"{name}, limit" not in results.rows:
            times(base, data, name, arguments.rounds, results)
        if arguments.adapters and f"{name}, {elsewhere.NAME}" not in results.rows:
            times_elsewhere(base, data, name, arguments.rounds, arguments.adapters, results)
        for who in NAMES[:-1]:
            results.cell(f"{name}, {who}, memory", partial(megabytes, name, who))
    for line in table(results.rows, arguments.data):
        print(line)
    return 0


def step_of(base: foreword.Base, who: str) -> Step:
    if who == "limit":
        return contenders.the_limit(base)
    if who in contenders.OURS:
        return contenders.ours(base, who.split()[-1], LENGTH)[1]
    return contenders.peers(who, LENGTH)[1]


def times(base: foreword.Base, data: str, name: str, rounds: int, results: Results) -> None:
    rows = contenders.examples_of(base, data, name, "train", (rounds + 1) * BATCH * BLOCK[name])
    steps = {who: step_of(base, who) for who in NAMES[:-1]}
    found = interleaved({who: _run(who, step, rows, name) for who, step in steps.items()}, rounds)
    for who in found:
        put(results, name, who, found, rows)


def times_elsewhere(base: foreword.Base, data: str, name: str, rounds: int, python: str, results: Results) -> None:
    """adapters beside the limit alone: two processes with every contender's memory would not fit 24 GB."""
    rows = contenders.examples_of(base, data, name, "train", (rounds + 1) * BATCH * BLOCK[name])
    with Elsewhere(base, python, LENGTH) as other:
        steps: dict[str, Step] = {"limit": step_of(base, "limit"), elsewhere.NAME: other}
        runs = {who: _run(who, step, rows, name) for who, step in steps.items()}
        put(results, name, elsewhere.NAME, interleaved(runs, rounds, clocks={elsewhere.NAME: other.clock}), rows)
        results.put(f"{name}, {elsewhere.NAME}, memory", {"megabytes": other.megabytes})


def put(results: Results, name: str, who: str, found: dict[str, dict[str, Any]], rows: Sequence[Example]) -> None:
    """A contender's cell: seconds of a step, and ratios to the limit of its own run."""
    seconds, limit, size = found[who], found["limit"], BATCH * BLOCK[name]
    targets = sum(len(row.target_ids) for row in rows[size:]) / seconds["rounds"]
    ratios = {"times": seconds["wall"] / limit["wall"], "cpu_times": seconds["cpu"] / limit["cpu"]}
    more = {"wall": seconds["wall"] / BLOCK[name], "tokens_per_second": targets / seconds["wall"]}
    results.put(f"{name}, {who}", seconds | more | ratios)


def _run(who: str, step: Step, rows: Sequence[Example], name: str) -> Callable[[], None]:
    return partial(next, _blocks(step, rows, BATCH * BLOCK[name], in_order=who in PEERS))


def _blocks(step: Step, rows: Sequence[Example], size: int, in_order: bool) -> Iterator[None]:
    """Each `next` updates on one block of batches. Ours are sorted by length within the block."""
    for start in range(0, len(rows), size):
        block = list(rows[start : start + size])
        block = block if in_order else sorted(block, key=lambda row: row.num_tokens)
        batches = [block[index : index + BATCH] for index in range(0, size, BATCH)]
        random.Random(start).shuffle(batches)
        for batch in batches:
            step(batch)
        yield


def megabytes(name: str, who: str) -> dict[str, float]:
    return {"megabytes": in_new_process(__file__, "--data", name, "--memory", who)}


def memory(base: foreword.Base, data: str, name: str, who: str) -> float:
    """Peak memory of three updates on random batches, above the loaded model, in MB."""
    rows = contenders.examples_of(base, data, name, "train", 3 * BATCH)
    step, peak = step_of(base, who), PeakMemory()
    for start in range(0, len(rows), BATCH):
        step(rows[start : start + BATCH])
    return peak.megabytes()


def table(rows: dict[str, dict[str, Any]], names: Sequence[str]) -> Iterator[str]:
    """The table of docs/performance.md."""
    yield "| rows | contender | step, s | times the limit | CPU times the limit | target tokens/s | peak memory, MB |"
    yield "|---|---|---|---|---|---|---|"
    for name in names:
        for who in NAMES:
            if f"{name}, {who}" not in rows:
                continue
            cell, peak = rows[f"{name}, {who}"], rows[f"{name}, {who}, memory"]["megabytes"]
            yield (
                f"| {name} | {who} | {cell['wall']:.2f} | {cell['times']:.2f} | {cell['cpu_times']:.2f} | "
                f"{cell['tokens_per_second']:.0f} | {peak:,.0f} |"
            )


if __name__ == "__main__":
    sys.exit(main())
