"""Every method on E2E under one budget, each at its best of the same three learning rates.

    FOREWORD_DATA=../shared/data python bench/methods.py [--methods direct …] [--long] [--timing] [--out FILE]

SmolLM2-135M, 60 steps of batch 8, length 32, text initialisation, the same batches for all. Prints the
parameters trained, KB of the saved prefix, validation loss in nats per target token (first reference of the first
96 rows) at step 0 and at the end, and BLEU (greedy, all references of the same rows) at the best rate.
`--long`: direct and mlp at 32 to 512 virtual tokens, 40 steps, several seeds, and what keeps them stable. `--timing`:
seconds per step on one batch, methods interleaved, medians; run it on a quiet machine.

Resumable cell by cell: what stands in the results file is not computed again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import foreword
from foreword.data import Reading
from foreword.init import Beginning, starting_point
from foreword.methods import METHODS
from foreword.tasks import TaskSettings, make_task
from results import Results, data_folder, machine

TEMPLATE = "{input}\nDescription:"
RATES = (6e-4, 6e-3, 6e-2)
LONG, LONG_STEPS = (32, 128, 256, 512), 40
LONG_RATES = {"direct": 6e-2, "mlp": 4e-4}
# what might keep 512 virtual tokens stable: changes to the settings of `direct`
STABLE: dict[str, dict[str, Any]] = {
    "no clipping": {"clip": 1e9},
    "clip 0.1": {"clip": 0.1},
    "rate / 4": {"lr": 1.5e-2},
    "rate / 16": {"lr": 3.75e-3},
    "first 4 tokens frozen": {"frozen_tokens": 4},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of --long")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--timing", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("bench/results/methods.json"))
    arguments = parser.parse_args()
    data = data_folder("e2e")
    about = {"machine": machine(), "steps": arguments.steps, "batch_size": arguments.batch_size}
    results = Results(arguments.out, about)
    bench = Bench(foreword.load("smollm2-135m", device="cpu"), f"{data}/e2e", arguments, results)
    if arguments.timing:
        bench.timing()
    elif arguments.long:
        bench.long_prefixes()
    else:
        for name in arguments.methods:
            bench.method(name)
        bench.table()
    return 0


class Bench:
    """One process of cells; each result goes to disk as soon as it is there."""

    def __init__(self, base: foreword.Base, data: str, arguments: argparse.Namespace, results: Results) -> None:
        self.base, self.data, self.arguments, self.results = base, data, arguments, results

    def method(self, name: str) -> None:
        """Three rates, the method's own default, then BLEU at the best of the three."""
        losses = {}
        for rate in RATES:
            cell = self.cell(f"{name} at {rate:g}", method=name, lr=rate)
            losses[rate] = cell["loss"]
        best = min(losses, key=lambda rate: float(losses[rate]))
        own = METHODS[name].default_lr
        self.cell(f"{name} at {own:g}", method=name, lr=own)
        self.results.cell(f"{name} BLEU", lambda: self._bleu(name, best))

    def cell(self, key: str, **settings: Any) -> dict[str, Any]:
        def run() -> dict[str, Any]:
            with tempfile.TemporaryDirectory() as folder:
                return measure(self.base, self.config(folder, **settings), settings)

        return self.results.cell(key, run)

    def _bleu(self, name: str, rate: float) -> dict[str, Any]:
        """Trained again, bit for bit the same, so that no prefix has to be kept."""
        with tempfile.TemporaryDirectory() as folder:
            config = self.config(folder, method=name, lr=rate)
            result = foreword.train(self.base, config)
            rows = foreword.EvalConfig(data=f"{self.data}/valid.jsonl", metrics=("bleu",), rows=96)
            bleu = foreword.evaluate(self.base, rows, result.prefix).metrics["bleu"]
        return {"lr": rate, "bleu": bleu}

    def config(self, folder: str, **settings: Any) -> foreword.TrainConfig:
        values: dict[str, Any] = {
            "data": f"{self.data}/train.jsonl", "validation": f"{self.data}/valid.jsonl", "template": TEMPLATE,
            "length": 32, "steps": self.arguments.steps, "batch_size": self.arguments.batch_size,
            "validate_every": self.arguments.steps, "checkpoint_every": self.arguments.steps, "trackers": (),
            "output": f"{folder}/run",
        }  # fmt: skip
        return foreword.TrainConfig(**(values | settings))

    def long_prefixes(self) -> None:
        for length in LONG:
            for method, rate in LONG_RATES.items():
                for seed in self.arguments.seeds:
                    key = f"{method}, {length} tokens, seed {seed}"
                    self.cell(key, method=method, length=length, lr=rate, seed=seed, **self._long())
        for name, changes in STABLE.items():
            for seed in self.arguments.seeds:
                settings = {"method": "direct", "length": 512, "lr": 6e-2, "seed": seed, **self._long()} | changes
                self.cell(f"direct, 512 tokens, {name}, seed {seed}", **settings)

    def _long(self) -> dict[str, Any]:
        return {"steps": LONG_STEPS, "validate_every": LONG_STEPS // 2, "checkpoint_every": LONG_STEPS}

    def timing(self, rounds: int = 7) -> None:
        """Median seconds of forward, backward and update on one batch; interleaved, the first round warms up."""
        task = make_task(self.base, "lm", TaskSettings(TEMPLATE))
        items, _ = task.load(f"{self.data}/valid.jsonl", Reading(limit=self.arguments.batch_size))
        start = starting_point(self.base, items, Beginning(length=32))
        producers = {}
        for name in self.arguments.methods:
            method = METHODS[name]
            producers[name] = method.start(start, method.parse_options({}))
        seconds: dict[str, list[float]] = {name: [] for name in producers}
        for number in range(rounds + 1):
            for name, producer in producers.items():
                optimizer = torch.optim.AdamW(producer.parameters(), lr=1e-4)
                began = time.perf_counter()
                task.losses(producer(), items).mean().backward()
                optimizer.step()
                if number:
                    seconds[name].append(time.perf_counter() - began)
        for name, own in seconds.items():
            median = statistics.median(own)
            ratio = median / statistics.median(seconds["direct"])
            self.results.put(f"{name} seconds", {"median": median, "ratio": ratio, "spread": [min(own), max(own)]})

    def table(self) -> None:
        for line in markdown(self.results.rows):
            print(line)


def markdown(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The table of docs/methods.md."""
    yield (
        "| method | best rate | parameters | KB | step, times direct's | loss at step 0 | loss | BLEU "
        "| at the default rate |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for name in METHODS:
        if (bleu := rows.get(f"{name} BLEU")) is None:
            continue
        cell, step = rows[f"{name} at {bleu['lr']:g}"], rows.get(f"{name} seconds")
        times = "–" if step is None else f"{step['ratio']:.2f}"
        numbers = (
            f"{cell['parameters']:,} | {cell['kilobytes']:,.0f} | {times} | {cell['start']:.3f} | {cell['loss']:.3f}"
        )
        own = METHODS[name].default_lr
        default = rows.get(f"{name} at {own:g}", {}).get("loss")
        shown = "–" if default is None else f"{float(default):.3f} ({own:g})"
        yield f"| `{name}` | {bleu['lr']:g} | {numbers} | {bleu['bleu']:.1f} | {shown} |"


def measure(base: foreword.Base, config: foreword.TrainConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """One run: validation losses, how many parameters, how large. A run that breaks down is a result too."""
    try:
        result = foreword.train(base, config)
    except foreword.ForewordError as error:
        return settings | {"loss": float("inf"), "error": str(error)}
    curve = {row["step"]: row["validation_loss"] for row in result.history if "validation_loss" in row}
    updates = [row["loss"] for row in result.history if "loss" in row]
    folder = result.run / "prefix"
    return settings | {
        "start": curve[0],
        "loss": curve[max(curve)],
        "curve": curve,
        "worst_update": max(updates[5:]),
        "parameters": result.prefix.record["trained_parameters"],
        "kilobytes": sum(file.stat().st_size for file in folder.iterdir()) / 1000,
    }


if __name__ == "__main__":
    sys.exit(main())
