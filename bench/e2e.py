"""E2E at the defaults, beside PEFT's prefix tuning: 60 steps of batch 16, length 32, the same batches.

    FOREWORD_DATA=../shared/data python bench/e2e.py [--seeds 0 1 2] [--method direct] [--no-peer] [--out FILE]

Prints the validation loss (first reference of the first 96 rows, end token included, mean over target
tokens) at step 0 and after the last step; it measures no time. Foreword's goal is 1.40 at most on each seed.
PEFT trains at its defaults (random initialisation) and learning rate 1e-2, on the first seed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import foreword
from contenders import features
from foreword.data import Example, Reading
from foreword.data.order import batches
from foreword.tasks import LanguageModelling, TaskSettings
from foreword.training.schedule import learning_rate
from harness import padded
from results import data_folder, machine

TEMPLATE = "{input}\nDescription:"
PEER_RATE = 1e-2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--method", default="direct")
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=None)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    data = data_folder("e2e")
    base = foreword.load("smollm2-135m", device="cpu")
    rows = []
    if not arguments.no_peer:
        rows.append(peft(base, f"{data}/e2e", arguments))
        show(rows[-1])
    for seed in arguments.seeds:
        rows.append(ours(base, f"{data}/e2e", arguments, seed))
        show(rows[-1])
    worst = max(row["end"] for row in rows if row["name"] != "peft")
    print(f"worst of foreword {worst:.4f} (goal 1.40)")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        report = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "rows": rows}
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if worst <= 1.40 else 1


def show(row: dict[str, Any]) -> None:
    print(
        "  ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
        ),
        flush=True,
    )


def ours(base: foreword.Base, data: str, arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        config = foreword.TrainConfig(
            data=f"{data}/train.jsonl",
            validation=f"{data}/valid.jsonl",
            template=TEMPLATE,
            method=arguments.method,
            length=arguments.length,
            steps=arguments.steps,
            lr=arguments.lr,
            seed=seed,
            trackers=(),
            validate_every=arguments.steps,
            output=f"{folder}/run",
        )
        result = foreword.train(base, config)
    start = result.history[0]["validation_loss"]
    rate = result.prefix.record["config"]["lr"]
    name, end = f"foreword {arguments.method}", result.validation_loss
    return {"name": name, "lr": rate, "seed": seed, "start": start, "end": end}


def peft(base: foreword.Base, data: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """PEFT's prefix tuning on the same batches and schedule, with labels at target tokens."""
    from peft import PrefixTuningConfig, get_peft_model

    seed = arguments.seeds[0]
    torch.manual_seed(seed)
    task = LanguageModelling(base, TaskSettings(TEMPLATE))
    training, _ = task.load(f"{data}/train.jsonl", Reading())
    held_out, _ = task.load(f"{data}/valid.jsonl", Reading(limit=96))
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=arguments.length)
    own = foreword.load("smollm2-135m", device="cpu")  # PEFT changes the model it is given
    model = get_peft_model(own.model, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=PEER_RATE, weight_decay=0.0)
    start = _peft_loss(model, held_out)
    order = batches([example.num_tokens for example in training], 16, seed, window=1)  # as packed rows come
    for step, chosen in zip(range(1, arguments.steps + 1), order, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, PEER_RATE, 10, foreword.TrainConfig.final_lr, "linear")
        model(**padded([features(training[row]) for row in chosen])).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    end = _peft_loss(model, held_out)
    return {"name": "peft", "lr": PEER_RATE, "seed": seed, "start": start, "end": end}


@torch.no_grad()
def _peft_loss(model: Any, examples: Sequence[Example]) -> float:
    total, count = 0.0, 0
    for start in range(0, len(examples), 16):
        chosen = examples[start : start + 16]
        tokens = sum(len(example.target_ids) for example in chosen)
        total += float(model(**padded([features(row) for row in chosen])).loss) * tokens
        count += tokens
    return total / count


if __name__ == "__main__":
    sys.exit(main())
