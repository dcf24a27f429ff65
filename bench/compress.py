"""What each way to make an E2E prefix smaller costs: bytes against validation loss and BLEU.

    FOREWORD_DATA=../shared/data python bench/compress.py [--recover 40] [--rows 96] [--choices int8,svd-8] [--out FILE]

Trains a prefix on SmolLM2-135M (60 steps of batch 8, length 32, seed 0) unless --prefix names one, then runs the
sweep of `foreword compress` on the first references of the first validation rows, and prints its table. Measures no
time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import foreword
from foreword.compression.data import recorded_settings
from foreword.compression.run import sweep
from results import data_folder, machine

TEMPLATE = "{input}\nDescription:"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefix", help="a saved E2E prefix; default: one is trained")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--recover", type=int, default=0)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--choices", default="")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    data = data_folder("e2e")
    base = foreword.load("smollm2-135m", device="cpu")
    rows_of: dict[str, Any] = {
        "data": f"{data}/e2e/train.jsonl",
        "validation": f"{data}/e2e/valid.jsonl",
        "template": TEMPLATE,
    }
    if arguments.prefix:
        prefix = foreword.Prefix.load(arguments.prefix)
        rows_of = recorded_settings(prefix.record, arguments.prefix)
    else:
        prefix = trained(base, f"{data}/e2e", arguments)
    config = foreword.CompressConfig(**rows_of)
    config = replace(
        config, validation_rows=arguments.rows, recover=arguments.recover,
        choices=tuple(name for name in arguments.choices.split(",") if name),
    )  # fmt: skip
    rows = [figures(row) for row in sweep(base, config, prefix, progress)]
    for row in rows:
        print("  ".join(f"{value:.4g}" if isinstance(value, float) else f"{value!s:<18}" for value in row.values()))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        report = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "recover": arguments.recover, "rows": rows}
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def progress(what: str, done: int, total: int) -> None:
    print(f"{what} {done} of {total}", file=sys.stderr, flush=True)


def figures(row: Any) -> dict[str, Any]:
    names = ("choice", "tokens", "num_bytes", "loss", "bleu", "recovered")
    return {name: getattr(row, name) for name in names}


def trained(base: foreword.Base, data: str, arguments: argparse.Namespace) -> foreword.Prefix:
    with tempfile.TemporaryDirectory() as folder:
        config = foreword.TrainConfig(
            data=f"{data}/train.jsonl",
            validation=f"{data}/valid.jsonl",
            template=TEMPLATE,
            length=arguments.length,
            steps=arguments.steps,
            batch_size=arguments.batch_size,
            trackers=(),
            validate_every=arguments.steps,
            output=f"{folder}/run",
        )
        return foreword.train(base, config).prefix


if __name__ == "__main__":
    sys.exit(main())
