"""How long until the loss that PEFT's prefix tuning has after 200 steps on E2E.

    FOREWORD_DATA=../shared/data python bench/time_to_loss.py [--only "peft prefix" …] [--out FILE]

SmolLM2-135M, batch 8, 32 virtual tokens, validation loss of the first 96 rows. Contenders: Foreword direct and mlp (100 steps,
text initialisation), PEFT's prefix tuning at its default and from the same text (`initialize_kv_prefix_from_text`),
both under Transformers' Trainer for 200 steps. Each at the best of the same three learning rates: PEFT's are compared after
60 of the 200 steps, and the best goes on; ours are those that bench/methods.py found. Losses are measured every 20 (ours:
10) steps. Time is steps times the median seconds
of a step that bench/train.py measured, so this script may run beside others. Resumable cell by cell.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

import contenders
import foreword
from results import Results, data_folder, machine

RATES, BATCH, LENGTH = (6e-4, 6e-3, 6e-2), 8, 32
PEER_STEPS, FIRST, STEPS = 200, 60, 100
BEST = {"direct": 6e-2, "mlp": 6e-4}  # of RATES, from bench/methods.py
PEERS = ("peft prefix", "peft prefix, text")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[*PEERS, *contenders.OURS])
    parser.add_argument(
        "--timing", type=Path, default=Path("bench/results/train.json"), help="what bench/train.py wrote"
    )
    parser.add_argument("--out", type=Path, default=Path("bench/results/time_to_loss.json"))
    arguments = parser.parse_args()
    data = data_folder("e2e")
    about = {"machine": machine(), "batch": BATCH, "length": LENGTH, "peer_steps": PEER_STEPS}
    results = Results(arguments.out, about)
    base = foreword.load("smollm2-135m", device="cpu")
    held_out = contenders.examples_of(base, data, "e2e", "valid", 96)
    rows = contenders.examples_of(base, data, "e2e", "train", PEER_STEPS * BATCH)
    text = "\n".join(f"{row.prompt} {row.target}" for row in rows[:8])
    for name in arguments.only:
        if name in PEERS:
            peer(results, name, rows, held_out, text)
        else:
            method = name.split()[-1]
            results.cell(f"{name}, {BEST[method]:g}", partial(ours, base, data, method, BEST[method], text))
    for line in table(results.rows, arguments.timing):
        print(line)
    return 0


def peer(results: Results, name: str, rows: list[Any], held_out: list[Any], text: str) -> None:
    first = {
        rate: results.cell(f"{name}, {rate:g}, {FIRST} steps", partial(peft, name, rate, FIRST, rows, held_out, text))
        for rate in RATES
    }
    best = min(first, key=lambda rate: float(list(first[rate]["curve"].values())[-1]))
    results.cell(f"{name}, best", partial(peft, name, best, PEER_STEPS, rows, held_out, text))


def peft(name: str, rate: float, until: int, rows: list[Any], held_out: list[Any], text: str) -> dict[str, Any]:
    """`until` of the 200 steps."""
    from transformers import TrainerCallback

    torch.manual_seed(0)
    model, tokenizer = contenders.peft_model(name, LENGTH, text)
    curve = {0: contenders.peft_loss(model, tokenizer, held_out)}

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            if state.global_step % 20 == 0:
                curve[state.global_step] = contenders.peft_loss(model, tokenizer, held_out)
                print(name, rate, state.global_step, curve[state.global_step], flush=True)
            control.should_training_stop = state.global_step >= until
            return control

    contenders.trainer(model, tokenizer, rows, PEER_STEPS, BATCH, rate, [Watch()]).train()
    return {"lr": rate, "curve": curve, "loss": curve[max(curve)]}


def ours(base: foreword.Base, data: str, method: str, rate: float, text: str) -> dict[str, Any]:
    training, validation = contenders.data_of(data, "e2e")
    with tempfile.TemporaryDirectory() as folder:
        config = foreword.TrainConfig(
            data=training, validation=validation, template=contenders.TEMPLATES["e2e"], method=method, lr=rate,
            length=LENGTH, steps=STEPS, batch_size=BATCH, validate_every=10, checkpoint_every=STEPS, trackers=(),
            output=f"{folder}/run", init_text=text,
        )  # fmt: skip
        history = foreword.train(base, config).history
    curve = {row["step"]: row["validation_loss"] for row in history if "validation_loss" in row}
    return {"lr": rate, "curve": curve, "loss": curve[max(curve)]}


def table(rows: dict[str, dict[str, Any]], timing: Path) -> list[str]:
    """Steps, and seconds at the measured step times, until each peer's last loss."""
    seconds = json.loads(timing.read_text(encoding="utf-8"))["cells"] if timing.is_file() else {}
    lines = []
    for peer_name in PEERS:
        if (best := rows.get(f"{peer_name}, best")) is None:
            continue
        target = float(best["loss"])
        lines.append(f"{peer_name}: {target:.3f} after {PEER_STEPS} steps at {best['lr']:g}")
        for name in contenders.OURS:
            found = [reached(cell["curve"], target) for key, cell in rows.items() if key.startswith(f"{name}, ")]
            steps = min((step for step in found if step is not None), default=None)
            if steps is None:
                lines.append(f"  {name}: not reached")
                continue
            own, other = (seconds.get(f"e2e, {who}", {}).get("wall") for who in (name, "peft prefix"))
            share = "" if not own or not other else f", {steps * own / (PEER_STEPS * other):.3f} of its time"
            lines.append(f"  {name}: {steps} steps{share}")
    return lines


def reached(curve: dict[Any, float], target: float) -> int | None:
    return next((int(step) for step, loss in curve.items() if float(loss) <= target), None)


if __name__ == "__main__":
    sys.exit(main())
