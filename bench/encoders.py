"""MiniLM on SST-2, banking77 and WNUT17: a head alone, a prompt, a deep prefix, and full fine-tuning, in one table.

    FOREWORD_DATA=../shared/data python bench/encoders.py [--data sst2 …] [--raise] [--out FILE]

Every arm trains the same linear head (learning rate 3e-3) on the same batches for the same number of steps; what
differs is what else learns. Accuracy, or entity F1, on held-out rows (banking77: every tenth row, since it has no
validation file). Prompt and prefix have 16 virtual tokens. Prefix and full fine-tuning take the better of two
learning rates, chosen on those same rows. Resumable cell by cell. `closed` is the share of the gap between head and
full fine-tuning. `--raise` tries what could close more of it: higher rates, more virtual tokens, an MLP, and three
times the steps (full fine-tuning has them too).
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import bases
import foreword
from foreword.data import Reading
from foreword.data.order import batches
from foreword.evaluation import evaluate_items
from foreword.tasks import Measuring, Task, TaskSettings, make_task
from foreword.training.schedule import learning_rate
from results import Results, data_folder, machine

BATCH, WARMUP, HEAD_RATE, LENGTH = 16, 20, 3e-3, 16
# data set → task, measure, steps
DATA = {
    "sst2": ("seq-cls", "accuracy", 200),
    "banking77": ("seq-cls", "accuracy", 400),
    "wnut17": ("token-cls", "entity_f1", 200),
}
FULL = "full fine-tuning"
# arm → learning rates of what learns beside the head
ARMS: dict[str, tuple[float, ...]] = {
    "head only": (0.0,),
    "prompt + head": (3e-2,),
    "deep prefix + head": (1e-2, 3e-2),
    FULL: (1e-4, 3e-4),
}
# change of the deep prefix → (method, length, rate, times the steps)
RAISES: dict[str, tuple[str, int, float, int]] = {
    "rate 0.1": ("direct", 16, 0.1, 1),
    "64 tokens": ("direct", 64, 3e-2, 1),
    "64 tokens, rate 0.1": ("direct", 64, 0.1, 1),
    "mlp": ("mlp", 16, 1e-3, 1),
    "3 x steps": ("direct", 16, 3e-2, 3),
}
METHODS = {"prompt + head": "prompt", "deep prefix + head": "direct"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--raise", dest="raised", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("bench/results/encoders.json"))
    arguments = parser.parse_args()
    data = data_folder(*arguments.data)
    about = {"machine": machine(), "batch": BATCH}
    results = Results(arguments.out, about)
    base = foreword.load(bases.minilm(), device="cpu")
    for name in arguments.data:
        with tempfile.TemporaryDirectory() as folder:
            files = rows_of(Path(data) / name, Path(folder))
            for arm, rates in ARMS.items():
                for rate in rates:
                    results.cell(f"{name}, {arm}, {rate:g}", partial(run, base, name, arm, rate, files))
            if arguments.raised:
                for what, change in RAISES.items():
                    results.cell(f"{name}, raise: {what}", partial(raised, base, name, *change, files))
                results.cell(f"{name}, full fine-tuning, 3 x steps", partial(run, base, name, FULL, 1e-4, files, 3))
    for line in (*table(results.rows, arguments.data), *raised_table(results.rows, arguments.data)):
        print(line)
    return 0


def rows_of(source: Path, folder: Path) -> tuple[str, str]:
    """(training file, held-out file)."""
    if (source / "valid.jsonl").is_file():
        return str(source / "train.jsonl"), str(source / "valid.jsonl")
    lines = (source / "train.jsonl").read_text(encoding="utf-8").splitlines()
    for name, kept in (("train", [line for n, line in enumerate(lines) if n % 10]), ("valid", lines[::10])):
        (folder / f"{name}.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
    return str(folder / "train.jsonl"), str(folder / "valid.jsonl")


def run(
    base: foreword.Base, name: str, arm: str, rate: float, files: tuple[str, str], times: int = 1
) -> dict[str, Any]:
    if arm in METHODS:
        return raised(base, name, METHODS[arm], LENGTH, rate, times, files)
    task, measure, steps = DATA[name]
    found, trained = without_prefix(base, task, steps * times, rate, files)
    return row(measure, found, rate, trained, steps * times)


def raised(
    base: foreword.Base, name: str, method: str, length: int, rate: float, times: int, files: tuple[str, str]
) -> dict[str, Any]:
    task, measure, steps = DATA[name]
    found, trained = with_prefix(base, method, length, task, steps * times, rate, files)
    return row(measure, found, rate, trained, steps * times)


def row(measure: str, found: dict[str, float], rate: float, trained: int, steps: int) -> dict[str, Any]:
    return {"lr": rate, measure: found[measure], "loss": found["loss"], "parameters": trained, "steps": steps}


def with_prefix(
    base: foreword.Base, method: str, length: int, task: str, steps: int, rate: float, files: tuple[str, str]
) -> tuple[dict[str, float], int]:
    with tempfile.TemporaryDirectory() as folder:
        config = foreword.TrainConfig(
            data=files[0], validation=files[1], validation_rows=None, task=task, method=method, length=length,
            steps=steps,
            batch_size=BATCH, lr=rate, head_lr=HEAD_RATE, warmup=WARMUP, validate_every=steps, checkpoint_every=steps,
            trackers=(), output=f"{folder}/run", max_bad_rows=100, max_tokens=256,
        )  # fmt: skip
        result = foreword.train(base, config)
        request = foreword.EvalConfig(
            data=files[1], prefix=f"{folder}/run/prefix", batch_size=64, max_bad_rows=100, max_tokens=256
        )
        found = foreword.evaluate(base, request).metrics
        return found, int(result.prefix.record["trained_parameters"])


def without_prefix(
    base: foreword.Base, task: str, steps: int, rate: float, files: tuple[str, str]
) -> tuple[dict[str, float], int]:
    """The same loop without a prefix: the head alone, or with a rate the whole copied model too."""
    torch.manual_seed(0)
    own = base if not rate else foreword.Base(copy.deepcopy(base.model), base.tokenizer, name=base.name)
    made = make_task(own, task, TaskSettings())
    with open(files[0], encoding="utf-8") as handle:
        made.learn([json.loads(line) for line in handle])
    training, _ = made.load(files[0], Reading(max_tokens=256, max_bad_rows=100))
    held_out, _ = made.load(files[1], Reading(max_tokens=256, max_bad_rows=100))
    assert made.head is not None
    groups: list[dict[str, Any]] = [{"params": list(made.head.parameters()), "peak": HEAD_RATE}]
    if rate:
        own.model.requires_grad_(True).train()
        groups.append({"params": list(own.model.parameters()), "peak": rate})
    fit(made, training, groups, steps)
    own.model.requires_grad_(False).eval()
    found = evaluate_items(made, held_out, None, made.metrics, Measuring(64)).metrics
    return found, sum(parameter.numel() for group in groups for parameter in group["params"])


def fit(task: Task, items: Sequence[Any], groups: list[dict[str, Any]], steps: int) -> None:
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    parameters = [parameter for group in groups for parameter in group["params"]]
    order = batches([item.num_tokens for item in items], BATCH, 0)
    for step, chosen in zip(range(1, steps + 1), order, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, group["peak"], WARMUP, foreword.TrainConfig.final_lr, "linear")
        optimizer.zero_grad()
        task.losses(None, [items[index] for index in chosen]).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


def table(rows: dict[str, dict[str, Any]], names: list[str]) -> Iterator[str]:
    """The table of docs/tasks.md."""
    yield "| data | measure | " + " | ".join(ARMS) + " | closed by prompt | closed by prefix |"
    yield "|---|---|" + "---|" * (len(ARMS) + 2)
    for name in names:
        measure = DATA[name][1]
        best = {
            arm: max(rows[key][measure] for rate in rates if (key := f"{name}, {arm}, {rate:g}") in rows)
            for arm, rates in ARMS.items()
        }
        head, full = best["head only"], best[FULL]
        closed = [100 * (best[arm] - head) / (full - head) for arm in METHODS]
        numbers = " | ".join(f"{value:.1f}" for value in best.values())
        yield f"| {name} | {measure} | {numbers} | " + " | ".join(f"{share:.0f} %" for share in closed) + " |"


def raised_table(rows: dict[str, dict[str, Any]], names: list[str]) -> Iterator[str]:
    """What raises the deep prefix, and how much of the gap to full fine-tuning of as many steps it then closes."""
    yield "| deep prefix | " + " | ".join(f"{name}, {DATA[name][1]} | closed" for name in names) + " |"
    yield "|---|" + "---|---|" * len(names)
    for what, (_, _, _, times) in RAISES.items():
        cells = []
        for name in names:
            own, measure = rows.get(f"{name}, raise: {what}"), DATA[name][1]
            ends = [rows[f"{name}, {FULL}, {rate:g}"] for rate in ARMS[FULL]]
            if times > 1:
                ends = [row for row in (rows.get(f"{name}, {FULL}, {times} x steps"),) if row]
            head = rows[f"{name}, head only, 0"][measure]
            full = max((row[measure] for row in ends), default=None)
            shown = "–" if own is None or full is None else f"{100 * (own[measure] - head) / (full - head):.0f} %"
            cells += ["–" if own is None else f"{own[measure]:.1f}", shown]
        yield f"| {what} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
