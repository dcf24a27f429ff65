"""E2E at the defaults: 60 steps of batch 16, length 32, text initialisation, three seeds.

    FOREWORD_DATA=../shared/data python bench/e2e.py [--seeds 0 1 2] [--method direct] [--out results.json]

Prints the validation loss (first reference of the first 96 rows, end token included, mean over target
tokens) at step 0 and after 60 steps. The goal is 1.40 at most on each seed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import foreword


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--method", default="direct")
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=None)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    data = os.environ.get("FOREWORD_DATA")
    if not data or not (Path(data) / "e2e").is_dir():
        print("set FOREWORD_DATA to the folder that holds e2e/", file=sys.stderr)
        return 2
    base = foreword.load("smollm2-135m", device="cpu")
    rows = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            config = foreword.TrainConfig(
                data=f"{data}/e2e/train.jsonl",
                validation=f"{data}/e2e/valid.jsonl",
                template="{input}\nDescription:",
                method=arguments.method,
                length=arguments.length,
                steps=arguments.steps,
                lr=arguments.lr,
                seed=seed,
                trackers=(),
                validate_every=arguments.steps,
                output=f"{folder}/run",
            )
            began = time.perf_counter()
            result = foreword.train(base, config)
            start = result.history[0]["validation_loss"]
            rows.append(
                {
                    "seed": seed,
                    "start": start,
                    "end": result.validation_loss,
                    "seconds": time.perf_counter() - began,
                }
            )
        print("  ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    worst = max(row["end"] for row in rows)
    print(
        f"{arguments.method}, length {arguments.length}, lr {result.prefix.record['config']['lr']:g}: worst {worst:.4f} (goal 1.40)"
    )
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0 if worst <= 1.40 else 1


if __name__ == "__main__":
    sys.exit(main())
