"""How long until the loss that PEFT's prefix tuning has after 200 steps on E2E.

    FOREWORD_DATA=../shared/data python bench/time_to_loss.py [--length 32] [--only "peft prefix" …] [--out FILE]

SmolLM2-135M, batch 8, validation loss of the first 96 rows. Contenders: Foreword direct and mlp (text
initialisation), PEFT's prefix tuning at its default and from the same text (`initialize_kv_prefix_from_text`), both
under Transformers' Trainer for 200 steps. Each at the best of the same three learning rates: PEFT's are compared
after 60 of the 200 steps, and the best goes on, with any other that is within 0.05 of it; ours are those that
bench/methods.py found. All have the same rows. Learning rates decay over a run's steps, so ours run over several
numbers of them. Losses are measured every 20 (ours: 10) steps. Time is steps times the median seconds of a step,
which are measured at the end, interleaved (`--timing` alone, on a quiet machine): all else may run beside others.
Resumable cell by cell.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import contenders
import foreword
from harness import interleaved
from results import Results, data_folder, machine

RATES, BATCH = (6e-4, 6e-3, 6e-2), 8
PEER_STEPS, FIRST, STEPS = 200, 60, (40, 80, 150)
CLOSE = 0.05  # nats behind the best of the first steps, within which a rate goes on
BEST = {"direct": 6e-2, "mlp": 6e-4}  # of RATES, from bench/methods.py
PEERS = ("peft prefix", "peft prefix, text")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[*PEERS, *contenders.OURS], help="empty: show what is there")
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--timing", action="store_true", help="measure the steps' seconds; best on a quiet machine")
    parser.add_argument("--out", type=Path, default=Path("bench/results/time_to_loss.json"))
    arguments = parser.parse_args()
    data, length = data_folder("e2e"), arguments.length
    results = Results(arguments.out, {"machine": machine(), "batch": BATCH, "peer_steps": PEER_STEPS})
    base = foreword.load("smollm2-135m", device="cpu")
    held_out = contenders.examples_of(base, data, "e2e", "valid", 96)
    rows = contenders.examples_of(base, data, "e2e", "train", PEER_STEPS * BATCH)
    text = "\n".join(f"{row.prompt} {row.target}" for row in rows[:8])
    for name in arguments.only:
        if name in PEERS:
            peer(results, name, length, rows, held_out, text)
            continue
        for steps in STEPS:
            results.cell(f"{length}, {name}, {steps} steps", partial(ours, base, data, name, length, steps, text))
    if arguments.timing and f"{length}, peft prefix, seconds" not in results.rows:
        seconds(results, base, length, rows)
    for line in table(results.rows):
        print(line)
    return 0


def peer(results: Results, name: str, length: int, rows: list[Any], held_out: list[Any], text: str) -> None:
    def run(rate: float, until: int) -> dict[str, Any]:
        return peft(name, length, rate, until, rows, held_out, text)

    first = {
        rate: results.cell(f"{length}, {name}, {rate:g}, {FIRST} steps", partial(run, rate, FIRST)) for rate in RATES
    }
    best = min(float(cell["loss"]) for cell in first.values())
    for rate, cell in first.items():
        if float(cell["loss"]) <= best + CLOSE:
            results.cell(f"{length}, {name}, {rate:g}, {PEER_STEPS} steps", partial(run, rate, PEER_STEPS))


def peft(
    name: str, length: int, rate: float, until: int, rows: list[Any], held_out: list[Any], text: str
) -> dict[str, Any]:
    """`until` of the 200 steps."""
    from transformers import TrainerCallback

    torch.manual_seed(0)
    model, tokenizer = contenders.peft_model(name, length, text)
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


def ours(base: foreword.Base, data: str, name: str, length: int, steps: int, text: str) -> dict[str, Any]:
    """All of the peers' rows, in an order of its own."""
    training, validation = contenders.data_of(data, "e2e")
    method = name.split()[-1]
    with tempfile.TemporaryDirectory() as folder, open(training, encoding="utf-8") as lines:
        rows = Path(folder, "rows.jsonl")
        rows.write_text("".join(islice(lines, PEER_STEPS * BATCH)), encoding="utf-8")
        config = foreword.TrainConfig(
            data=str(rows), validation=validation, template=contenders.TEMPLATES["e2e"], method=method, lr=BEST[method],
            length=length, steps=steps, batch_size=BATCH, validate_every=10, checkpoint_every=steps, trackers=(),
            output=f"{folder}/run", init_text=text, warmup=min(10, steps // 10), final_lr=0.0,  # as Trainer's
        )  # fmt: skip
        history = foreword.train(base, config).history
    curve = {row["step"]: row["validation_loss"] for row in history if "validation_loss" in row}
    return {"lr": BEST[method], "curve": curve, "loss": curve[max(curve)]}


def seconds(results: Results, base: foreword.Base, length: int, rows: list[Any], rounds: int = 7) -> None:
    """A step of each, on the same rows in turn."""
    steps = {name: contenders.ours(base, name.split()[-1], length)[1] for name in contenders.OURS}
    steps |= {"peft prefix": contenders.peers("peft prefix", length)[1]}
    batches = {name: iter(rows[at : at + BATCH] for at in range(0, len(rows), BATCH)) for name in steps}
    found = interleaved({name: lambda name=name: steps[name](next(batches[name])) for name in steps}, rounds)  # type: ignore[misc]
    for name, cell in found.items():
        results.put(f"{length}, {name}, seconds", cell)


def table(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Steps, and the share of its time, until each peer's last loss."""
    for length in dict.fromkeys(name.split(", ")[0] for name in rows):
        for peer_name in PEERS:
            ends = [
                cell for rate in RATES if (cell := rows.get(f"{length}, {peer_name}, {rate:g}, {PEER_STEPS} steps"))
            ]
            if not ends:
                continue
            best = min(ends, key=lambda cell: float(cell["loss"]))
            target = float(best["loss"])
            yield f"{length} tokens, {peer_name}: {target:.3f} after {PEER_STEPS} steps at {best['lr']:g}"
            yield from (f"  {name}: {reaching(rows, length, name, target)}" for name in contenders.OURS)


def reaching(rows: dict[str, dict[str, Any]], length: str, name: str, target: float) -> str:
    curves = [cell["curve"] for key, cell in rows.items() if key.startswith(f"{length}, {name}, ") and "curve" in cell]
    if not curves:
        return "not run"
    steps = min((step for curve in curves if (step := reached(curve, target)) is not None), default=None)
    if steps is None:
        least = min(float(loss) for curve in curves for loss in curve.values())
        return f"not reached, {least:.3f} at the lowest"
    own, other = (rows.get(f"{length}, {who}, seconds", {}).get("wall") for who in (name, "peft prefix"))
    share = "" if not own or not other else f", {steps * own / (PEER_STEPS * other):.3f} of its time"
    return f"{steps} steps{share}"


def reached(curve: dict[Any, float], target: float) -> int | None:
    return next((int(step) for step, loss in curve.items() if float(loss) <= target), None)


if __name__ == "__main__":
    sys.exit(main())
