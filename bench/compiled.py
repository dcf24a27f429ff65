"""Decoding with a static cache, as it is and under `torch.compile`: the base, one prefix, and mixed rows.

    python bench/compiled.py [--rows 8] [--steps 24] [--out FILE]

SmolLM2-135M in float32, inductor. Median seconds of a decoding step; for the compiled ones also how many graphs there
are after prefixes of equal shape have been switched, which must be one each: base, one prefix, mixed rows.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import StaticCache

import foreword
from results import Results, machine

PROMPT = 32


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("bench/results/compiled.json"))
    arguments = parser.parse_args()
    results = Results(arguments.out, {"machine": machine(), "rows": arguments.rows, "prompt": PROMPT})
    base = foreword.load("smollm2-135m", device="cpu")
    prefixes = [foreword.Prefix.from_text(f"Task {number}: ", base, length=32) for number in range(4)]
    other = [foreword.Prefix.from_text(f"Work {number}: ", base, length=32) for number in range(4)]
    half = arguments.rows // 4
    cases: dict[str, list[Any]] = {
        "base": [None],
        "one prefix": [prefixes[0], other[0]],
        "4 tasks": [[one for one in own for _ in range(half)] for own in (prefixes, other)],
    }
    compiled = torch.compile(base.model.__call__, fullgraph=True, dynamic=False)
    for name, rows in cases.items():
        eager = [decode(base, row, base.model, arguments) for row in rows]
        results.put(f"{name}, as it is", {"seconds": statistics.median(eager[0])})
        began = time.perf_counter()
        decode(base, rows[0], compiled, arguments, steps=2)
        first = time.perf_counter() - began
        fast = [decode(base, row, compiled, arguments) for row in rows]
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        median = statistics.median(fast[-1])
        speed = {"seconds": median, "times_faster": statistics.median(eager[-1]) / median}
        results.put(f"{name}, compiled", speed | {"compile_seconds": first, "graphs_so_far": graphs})
    return 0


@torch.no_grad()
def decode(
    base: foreword.Base, rows: Any, call: Callable[..., Any], arguments: argparse.Namespace, steps: int | None = None
) -> list[float]:
    """Seconds of each decoding step behind a prompt of 32 tokens."""
    count, steps = arguments.rows, steps or arguments.steps
    room = PROMPT + arguments.steps
    cache, mask = StaticCache(config=base.model.config, max_cache_len=room), torch.zeros(count, room, dtype=torch.long)
    mask[:, :PROMPT] = 1
    ids, seconds = torch.arange(300, 300 + count * PROMPT).view(count, PROMPT), []
    with base.attach(rows):
        output = base.model(input_ids=ids, attention_mask=mask[:, :PROMPT], past_key_values=cache)
        for step in range(steps):
            token = output.logits[:, -1:].argmax(-1)
            mask[:, PROMPT + step] = 1
            began = time.perf_counter()
            output = call(input_ids=token, attention_mask=mask, past_key_values=cache)
            seconds.append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
