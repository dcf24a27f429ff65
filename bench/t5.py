"""An encoder–decoder on E2E: prefixes on its encoder, its decoder, its cross attention, and on all of them.

    FOREWORD_DATA=../shared/data python bench/t5.py [--out FILE]

The flan-t5-small of the wheel traceforge-title-model (fine-tuned by its makers, dequantised from int8; see bases.py),
`direct`, 32 virtual tokens, 60 steps of batch 8, each at the better of two learning rates; validation loss in nats per
target token on the first 96 rows, and BLEU. Resumable cell by cell.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import bases
import foreword
from results import Results, data_folder, machine

SLOTS: dict[str, tuple[str, ...]] = {
    "encoder": ("encoder",), "decoder": ("decoder",), "cross": ("cross",), "all": (),
}  # fmt: skip
RATES = (3e-2, 3e-1)
STEPS = 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/results/t5.json"))
    arguments = parser.parse_args()
    data = data_folder("e2e")
    about = {"machine": machine(), "steps": STEPS}
    results = Results(arguments.out, about)
    base = foreword.load(bases.flan_t5(print), device="cpu")
    for name, slots in SLOTS.items():
        for rate in RATES:
            results.cell(f"{name} at {rate:g}", partial(run, base, f"{data}/e2e", slots, rate))
    print("| slots | rate | parameters | loss at step 0 | loss | BLEU |\n|---|---|---|---|---|---|")
    for name in SLOTS:
        cells = [results.rows[f"{name} at {rate:g}"] for rate in RATES]
        best = min(cells, key=lambda cell: cell["loss"])
        print(
            f"| {name} | {best['lr']:g} | {best['parameters']:,} | {best['start']:.3f} "
            f"| {best['loss']:.3f} | {best['bleu']:.1f} |"
        )
    return 0


def run(base: foreword.Base, data: str, slots: tuple[str, ...], rate: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        config = foreword.TrainConfig(
            data=f"{data}/train.jsonl", validation=f"{data}/valid.jsonl", template="{input}", length=32, slots=slots,
            steps=STEPS, batch_size=8, lr=rate, validate_every=STEPS, checkpoint_every=STEPS, trackers=(),
            output=f"{folder}/run",
        )  # fmt: skip
        result = foreword.train(base, config)
        request = foreword.EvalConfig(data=f"{data}/valid.jsonl", rows=96, metrics=("bleu",))
        bleu = foreword.evaluate(base, request, result.prefix).metrics["bleu"]
    losses = [row["validation_loss"] for row in result.history if "validation_loss" in row]
    trained = result.prefix.record["trained_parameters"]
    return {"lr": rate, "start": losses[0], "loss": losses[-1], "bleu": bleu, "parameters": trained}


if __name__ == "__main__":
    sys.exit(main())
