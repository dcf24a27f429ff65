"""Two checkouts beside each other: seconds of a training step, a whole short run, and decoding, in one interleaved run.

    git worktree add ../before REVISION
    FOREWORD_DATA=../shared/data python bench/before_after.py ../before [--rounds 7]

Each checkout works in a process of its own, with its own sources and its own bench/contenders.py; they take turns. What
counts is the ratio, after over before, of the medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
CASES = (
    "training step, E2E",
    "training step, java-csharp",
    "a run of 4 steps",
    "decoding, 8 tasks",
    "decoding, one row",
    "1,000 switches",
    "20 attaches with a forward of one token",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="the other checkout")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve()
    sides = {"before": worker(Path(arguments.before)), "after": worker(HERE)}
    print("| case | before, s | after, s | after / before |\n|---|---|---|---|")
    for case in arguments.cases:
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(arguments.rounds + 1):
            order = sides if number % 2 else dict(reversed(sides.items()))
            for name, process in order.items():
                taken = ask(process, case)
                if number:  # the first round warms up
                    seconds[name].append(taken)
        before, after = (statistics.median(seconds[name]) for name in ("before", "after"))
        print(f"| {case} | {before:.3f} | {after:.3f} | {after / before:.3f} |", flush=True)
    return 0


def worker(tree: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join(str((tree / folder).resolve()) for folder in ("src", "bench"))
    return subprocess.Popen(
        [sys.executable, __file__, "--serve", str(tree)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip


def ask(process: subprocess.Popen[str], case: str) -> float:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the worker has no pipes")
    process.stdin.write(case + "\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def serve() -> int:
    """Run a case for each line of stdin, and print its seconds."""
    sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent.resolve()]
    sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
    cases = cases_of()
    for line in sys.stdin:
        began = time.perf_counter()
        cases[line.strip()]()
        print(time.perf_counter() - began, flush=True)
    return 0


def cases_of() -> dict[str, Callable[[], Any]]:
    import torch

    import contenders
    import foreword

    data = os.environ["FOREWORD_DATA"]
    base = foreword.load("smollm2-135m", device="cpu")
    step = contenders.ours(base, "direct", 32)[1]
    batches = {}
    for name in ("e2e", "java-csharp"):
        rows = contenders.examples_of(base, data, name, "train", 64)
        batches[name] = cycle([rows[start : start + 16] for start in range(0, 64, 16)])
    prompts = [row.prompt for row in contenders.examples_of(base, data, "e2e", "valid", 32)]
    prefixes = [foreword.Prefix.from_text(f"Task {task}:" * 9, base, length=32) for task in range(8)]
    of_rows = [prefixes[row % 8] for row in range(32)]
    lines = Path(data, "e2e", "train.jsonl").read_text(encoding="utf-8").splitlines()[:200]

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "rows.jsonl")
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
            settings: dict[str, Any] = {
                "data": str(file),
                "template": "{input}\nDescription:",
                "steps": 4,
                "trackers": (),
            }
            foreword.train(base, foreword.TrainConfig(**settings, validate_every=4, output=f"{folder}/run"))

    def switches() -> None:
        with base.attach(prefixes[0]):
            for number in range(1000):
                base.switch(prefixes[number % 8])

    def attaches() -> None:
        for number in range(20):
            with torch.no_grad(), base.attach(prefixes[number % 8]):
                base.model(input_ids=torch.tensor([[200]]), use_cache=False)

    return {
        CASES[0]: lambda: step(next(batches["e2e"])),
        CASES[1]: lambda: step(next(batches["java-csharp"])),
        CASES[2]: run,
        CASES[3]: lambda: base.generate(
            prompts, of_rows, template="{input}", batch_size=32, min_new_tokens=64, max_new_tokens=64
        ),
        CASES[4]: lambda: base.generate(
            prompts[:1], prefixes[0], template="{input}", min_new_tokens=32, max_new_tokens=32
        ),
        CASES[5]: switches,
        CASES[6]: attaches,
    }


if __name__ == "__main__":
    raise SystemExit(main())
