"""How time and memory grow with prefix length, batch, sequence length, tasks and layers, in training and decoding.

    python bench/growth.py [--rounds 3] [--plot docs/growth.svg] [--out FILE]

The shapes of SmolLM2-135M with random weights (fewer layers where layers vary) and synthetic tokens, float32. One
axis varies, the others stay at 32 virtual tokens, 8 rows, 64 tokens, 1 task, 30 layers. The expected line goes
through the first point and grows as the count of multiplications does (`work`); for memory it goes through the first
and the last point. Resumable point by point.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import foreword
from foreword.base.cache import growing_cache
from foreword.data import Example
from foreword.tasks import TaskSettings, make_task
from harness import PeakMemory
from results import Results, machine

WIDTH, HEADS, KV_HEADS, INNER, VOCABULARY = 576, 9, 3, 1536, 49152


@dataclass(frozen=True)
class Point:
    length: int = 32
    batch: int = 8
    tokens: int = 64
    tasks: int = 1
    layers: int = 30


AXES: dict[str, dict[str, tuple[int, ...]]] = {
    "training": {
        "length": (0, 32, 128, 512, 1024), "batch": (2, 4, 8, 16), "tokens": (32, 64, 128, 256, 512),
        "layers": (5, 10, 20, 30),
    },
    "decoding": {
        "length": (0, 32, 128, 512, 1024), "batch": (1, 4, 16, 32), "tokens": (64, 256, 512, 1024),
        "tasks": (1, 2, 4, 8),
        "layers": (5, 10, 20, 30),
    },
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--out", type=Path, default=Path("bench/results/growth.json"))
    arguments = parser.parse_args()
    results = Results(arguments.out, {"machine": machine()})
    for kind, axes in AXES.items():
        for axis, values in axes.items():
            for value in values:
                point = replace(Point(), **{axis: value})
                results.cell(f"{kind}, {axis}, {value}", partial(measure, kind, point, arguments.rounds))
    found = list(series(results.rows))
    for line in table(found):
        print(line)
    if arguments.plot:
        plot(found, arguments.plot)
    return 0


def measure(kind: str, point: Point, rounds: int) -> dict[str, Any]:
    run = (training if kind == "training" else decoding)(point)
    run()  # warms up
    peak, seconds = PeakMemory(), []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return {
        "seconds": statistics.median(seconds),
        "spread": [min(seconds), max(seconds)],
        "megabytes": peak.megabytes(),
    }


@lru_cache(maxsize=1)
def base_of(layers: int) -> foreword.Base:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=layers,
        tie_word_embeddings=True,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=8192,
    )  # fmt: skip
    torch.manual_seed(0)
    return foreword.Base(LlamaForCausalLM(config), name="random", weights_hash=lambda: "sha256:random")


def prefixes_of(base: foreword.Base, point: Point, grad: bool) -> list[foreword.Prefix | None]:
    if not point.length:
        return [None] * point.batch
    shape = (KV_HEADS, point.length, WIDTH // HEADS)
    made = []
    for task in range(point.tasks):
        torch.manual_seed(task)
        keys, values = ([torch.randn(shape, requires_grad=grad) for _ in base.slots] for _ in range(2))
        made.append(foreword.Prefix.from_kv(keys, values, base))
    return [made[row % point.tasks] for row in range(point.batch)]


def training(point: Point) -> Callable[[], None]:
    """Forward and backward of a step, without the optimizer. Half of a row's tokens are its target."""
    base = base_of(point.layers)
    (prefix, *_) = prefixes_of(base, point, grad=True)
    half = tuple(range(100, 100 + point.tokens // 2))
    rows = [Example(half, half, "", "", (), "")] * point.batch
    task = make_task(replace_tokenizer(base), "lm", TaskSettings())

    def run() -> None:
        losses = task.losses(prefix, rows)
        if losses.requires_grad:
            losses.mean().backward()

    return run


def replace_tokenizer(base: foreword.Base) -> foreword.Base:
    """A task wants a tokenizer, though these rows need none."""
    from foreword.base import load

    base.tokenizer = base.tokenizer or load("smollm2-135m", device="cpu").tokenizer
    return base


def decoding(point: Point) -> Callable[[], None]:
    """One step of all rows, `tokens` behind it in the cache."""
    base = base_of(point.layers)
    rows = sorted(prefixes_of(base, point, grad=False), key=id)
    width = WIDTH // HEADS
    past = torch.randn(point.batch, KV_HEADS, point.tokens, width)
    ids, cache = torch.full((point.batch, 1), 100), growing_cache(base.model.config)
    for layer in range(point.layers):
        cache.update(past, past, layer)

    def run() -> None:  # each run adds a token
        with torch.no_grad(), base.attach(rows[0] if point.tasks == 1 else rows):
            base.model(input_ids=ids, past_key_values=cache, use_cache=True)

    return run


def work(kind: str, point: Point) -> float:
    """Multiplications: weights once for each token, scores and values once for each key that a query sees."""
    layer = 2 * WIDTH * WIDTH + 2 * WIDTH * KV_HEADS * WIDTH // HEADS + 3 * WIDTH * INNER
    head = WIDTH * VOCABULARY
    if kind == "decoding":
        seen = 2 * WIDTH * (point.tokens + point.length)
        return point.batch * (point.layers * (layer + seen) + head)
    mean = 2 * WIDTH * (point.tokens / 2 + point.length)
    return point.batch * point.tokens * (point.layers * (2 * layer + 3.5 * mean) + head)


def series(rows: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, list[tuple[int, float, float, float, float]]]]:
    """Per axis (kind, axis, points of value, seconds, expected seconds, MB, expected MB)."""
    for kind, axes in AXES.items():
        for axis, values in axes.items():
            known = [value for value in values if f"{kind}, {axis}, {value}" in rows]
            cells = [rows[f"{kind}, {axis}, {value}"] for value in known]
            costs = [work(kind, replace(Point(), **{axis: value})) for value in known]
            start = 1 if kind == "training" and known and known[0] == 0 else 0  # without a prefix there is no backward
            slope = (cells[-1]["megabytes"] - cells[start]["megabytes"]) / (known[-1] - known[start])
            yield kind, axis, [
                (
                    value, cell["seconds"], cells[start]["seconds"] * cost / costs[start], cell["megabytes"],
                    cells[start]["megabytes"] + slope * (value - known[start]),
                )
                for value, cell, cost in zip(known, cells, costs, strict=True)
            ]  # fmt: skip


def table(found: list[tuple[str, str, list[tuple[int, float, float, float, float]]]]) -> Iterator[str]:
    """The table of docs/performance.md."""
    yield "| | axis | value | seconds | expected | MB above | expected |"
    yield "|---|---|---|---|---|---|---|"
    for kind, axis, points in found:
        for value, seconds, expected, megabytes, line in points:
            yield f"| {kind} | {axis} | {value} | {seconds:.3f} | {expected:.3f} | {megabytes:.0f} | {line:.0f} |"


def plot(found: list[tuple[str, str, list[tuple[int, float, float, float, float]]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 5, figsize=(16, 6))
    for kind_row, kind in enumerate(AXES):
        for column, (_, axis, points) in enumerate(entry for entry in found if entry[0] == kind):
            place = axes[kind_row][column]
            values = [point[0] for point in points]
            place.plot(values, [point[1] for point in points], "o-", label="measured")
            place.plot(values, [point[2] for point in points], "--", label="expected")
            place.set(title=f"{kind}: {axis}", ylim=(0, None), ylabel="seconds")
    axes[0][4].axis("off")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
