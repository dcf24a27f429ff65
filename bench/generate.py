"""Decoding with many tasks in one batch: 32 rows of 64 new tokens, over 1, 4, 8 and 32 tasks.

    FOREWORD_DATA=../shared/data python bench/generate.py [--tasks 1 4 8 32] [--lengths 32 mixed] [--compiled 8]
    [--rounds 3] [--out FILE]

SmolLM2-135M in float32, E2E prompts padded on the left, greedy, every row to the end; one interleaved run for each
number of tasks. Contenders: the base without any prefix; Foreword with a prefix for each task in one batch; PEFT's
prefix tuning, which has one active adapter, its tasks one after another; PEFT's LoRA (r=8, all linear layers) in one
batch with `adapter_names`; and for `--compiled` numbers of tasks Foreword with a static cache under `torch.compile`.
Prefixes have 32 virtual tokens, or 16 to 256 in turn (`mixed`). KB: keys and values of prefixes that attention reads,
Foreword's counted in the attachment, PEFT's expanded to its rows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

import contenders
import foreword
from foreword.attach.inject import attached
from foreword.base.generation import generate_ids
from foreword.base.inputs import padded
from harness import interleaved
from results import Results, data_folder, machine

ROWS, NEW = 32, 64
MIXED = (16, 32, 64, 128, 256)
WHO = ("base", "foreword", "peft prefix", "peft lora")
COMPILED = "foreword, compiled"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 4, 8, 32])
    parser.add_argument("--lengths", nargs="+", default=["32", "mixed"])
    parser.add_argument("--compiled", type=int, nargs="*", default=[8])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("bench/results/generate.json"))
    arguments = parser.parse_args()
    data = data_folder("e2e")
    results = Results(arguments.out, {"machine": machine(), "rows": ROWS, "new": NEW})
    base = foreword.load("smollm2-135m", device="cpu")
    prompts = [list(row.prompt_ids) for row in contenders.examples_of(base, data, "e2e", "valid", ROWS)]
    for kind in arguments.lengths:
        for tasks in arguments.tasks:
            if f"{kind}, {tasks} tasks, base" not in results.rows:
                measure(base, prompts, kind, tasks, arguments.rounds, tasks in arguments.compiled, results)
    for line in table(results.rows):
        print(line)
    return 0


def measure(
    base: foreword.Base,
    prompts: list[list[int]],
    kind: str,
    tasks: int,
    rounds: int,
    compiled: bool,
    results: Results,
) -> None:
    prefixes = [
        foreword.Prefix.from_text(f"Task {task}:" * 9, base, length=length_of(kind, task)) for task in range(tasks)
    ]
    rows = [prefixes[row % tasks] for row in range(ROWS)]
    options = {"min_new_tokens": NEW, "max_new_tokens": NEW}
    runs: dict[str, Callable[[], Any]] = {
        "base": partial(generate_ids, base, prompts, [None] * ROWS, [], options),
        "foreword": partial(generate_ids, base, prompts, rows, [], options),
    }
    if kind != "mixed":
        runs |= {"peft prefix": one_after_another(prompts, tasks), "peft lora": mixed_lora(prompts, tasks)}
        if compiled:
            runs[COMPILED] = partial(generate_ids, base, prompts, rows, [], options | compiling())
    found = interleaved(runs, rounds, warmup=int(tasks < ROWS))  # so many calls one after another need no warming up
    kb = {"foreword": held(base, rows) / 1000, "peft prefix": sum(row.num_bytes for row in rows) / 1000}
    for who, seconds in found.items():
        speed = {"tokens_per_second": ROWS * NEW / seconds["wall"], "of_base": found["base"]["wall"] / seconds["wall"]}
        results.put(f"{kind}, {tasks} tasks, {who}", seconds | speed | {"kilobytes": kb.get(who, 0.0)})


def compiling() -> dict[str, Any]:
    """Options of `generate` that compile its decoding step, which Transformers does by itself on a GPU alone."""
    from transformers import CompileConfig

    how = CompileConfig(fullgraph=True, dynamic=False, mode="default")
    how._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": how}


def length_of(kind: str, task: int) -> int:
    return MIXED[task % len(MIXED)] if kind == "mixed" else int(kind)


def held(base: foreword.Base, rows: list[foreword.Prefix]) -> int:
    """Bytes of keys and values that an attachment of `rows` reads, each piece of memory counted once."""
    ids = torch.zeros(len(rows), 1, dtype=torch.long)
    with torch.no_grad(), base.attach(list(rows)):
        base.model(input_ids=ids)
        attachment: Any = attached(base.model)
        storages = [tensor.untyped_storage() for pair in attachment._laid_out.values() for tensor in pair]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def one_after_another(prompts: list[list[int]], tasks: int) -> Callable[[], None]:
    """PEFT's prefix tuning: one generate call for each task's rows, its adapter set first."""
    from peft import PrefixTuningConfig

    model, _ = contenders.peft_model("peft prefix", 32)
    for task in range(1, tasks):
        model.add_adapter(f"task {task}", PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=32))
    names = ["default", *(f"task {task}" for task in range(1, tasks))]
    base = foreword.load("smollm2-135m", device="cpu")
    inputs = [padded(base, prompts[task::tasks], left=True) for task in range(tasks)]
    model.eval()

    def run() -> None:
        for name, own in zip(names, inputs, strict=True):
            model.set_adapter(name)
            _generate(model, own)

    return run


def mixed_lora(prompts: list[list[int]], tasks: int) -> Callable[[], None]:
    """PEFT's LoRA, one batch with an adapter for each row."""
    from peft import LoraConfig

    model, _ = contenders.peft_model("peft lora", 32)
    names = ["default", *(f"task{task}" for task in range(1, tasks))]
    for name in names[1:]:
        model.add_adapter(name, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"))
    base = foreword.load("smollm2-135m", device="cpu")
    inputs = padded(base, prompts, left=True)
    model.eval()
    rows = [names[row % tasks] for row in range(len(prompts))]
    return lambda: _generate(model, inputs, adapter_names=rows)


@torch.no_grad()
def _generate(model: Any, inputs: dict[str, torch.Tensor], **more: Any) -> None:
    model.generate(
        **inputs, min_new_tokens=NEW, max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=[], **more
    )


def table(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The table of docs/performance.md."""
    yield (
        "| virtual tokens | tasks | base, tokens/s | foreword | of the base | PEFT prefix, one by one | times it "
        "| PEFT LoRA, mixed | times it | KB held | KB of PEFT |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for name in rows:
        if not name.endswith(", base"):
            continue
        kind, tasks = name.split(", ")[0], name.split(", ")[1].removesuffix(" tasks")
        own = {who: rows.get(f"{kind}, {tasks} tasks, {who}") for who in WHO}
        ours, base = own["foreword"] or {}, own["base"] or {}
        cells = [f"{base['tokens_per_second']:.0f}", f"{ours['tokens_per_second']:.0f}", f"{ours['of_base']:.2f}"]
        for who in WHO[2:]:
            peer = own[who]
            cells += ["–", "–"] if peer is None else [
                f"{peer['tokens_per_second']:.0f}", f"{ours['tokens_per_second'] / peer['tokens_per_second']:.2f}",
            ]  # fmt: skip
        cells += [f"{ours['kilobytes']:,.0f}", f"{own['peft prefix']['kilobytes']:,.0f}" if own["peft prefix"] else "–"]
        yield f"| {kind} | {tasks} | " + " | ".join(cells) + " |"
    for name, cell in rows.items():
        if name.endswith(COMPILED):
            peer = rows[name.replace(COMPILED, "peft prefix")]
            times = cell["tokens_per_second"] / peer["tokens_per_second"]
            speed = f"{cell['tokens_per_second']:.0f} tokens/s, {cell['of_base']:.2f} of the base"
            yield f"{name}: {speed}, {times:.2f} times PEFT's prefixes one by one"


if __name__ == "__main__":
    sys.exit(main())
