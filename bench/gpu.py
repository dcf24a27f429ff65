"""A training step on a GPU beside the limit and beside PEFT; ready for a lent machine, in calls of under ten minutes.

    PYTHONPATH=src:bench python3 bench/gpu.py [--shapes SmolLM2-135M Llama-1B Llama-8B] [--out FILE]
    PYTHONPATH=src:bench python3 bench/gpu.py --shapes tiny --device cpu     (what tests run)

bfloat16, random weights, synthetic rows of uneven length up to the sequence length, half of each its target. First the
kernels are held to the reference in float64; then per shape, sequence length and prefix length: the limit (forward, and
backward towards inputs only), Foreword, Foreword with activation checkpointing, and PEFT's prefix tuning with padded
rows. Needs nothing but the project's sources, torch, Transformers and PEFT. Resumable cell by cell.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import foreword
from contenders import Step, ours, peft_step, the_limit
from foreword.attention import backends
from foreword.attention.call import AttentionCall
from foreword.attention.merge import two_part_attention
from foreword.attention.reference import reference_attention
from foreword.attention.segments import Segments
from foreword.attention.sharing import RowMap, Shared, laid_out
from foreword.data import Example
from foreword.prefix import KV
from foreword.training.activations import checkpointed_layers
from results import Results

# hidden, inner, layers, heads, KV heads, vocabulary, rows of a batch
SHAPES = {
    "tiny": (64, 128, 2, 4, 2, 300, 3),
    "SmolLM2-135M": (576, 1536, 30, 9, 3, 49152, 16),
    "Llama-1B": (2048, 8192, 16, 32, 8, 128256, 8),
    "Llama-8B": (4096, 14336, 32, 32, 8, 128256, 8),
}
SEQUENCES, LENGTHS = (512, 1024, 4096), (32, 512)
WHO = ("limit", "foreword", "foreword, checkpointed", "peft prefix")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", nargs="+", default=[name for name in SHAPES if name != "tiny"], choices=list(SHAPES)
    )
    parser.add_argument("--sequences", type=int, nargs="+", default=list(SEQUENCES))
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bench/results/gpu.json"))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    results = Results(arguments.out, {"card": card, "torch": torch.__version__})
    results.cell("kernels against the reference", partial(parity, device))
    for name in arguments.shapes:
        base = base_of(name, device)
        for sequence, length in itertools.product(arguments.sequences, arguments.lengths):
            rows = rows_of(SHAPES[name][-1], sequence)
            for who in WHO:
                key = f"{name}, {sequence} tokens, {length} virtual, {who}"
                results.cell(key, partial(measure, base, who, rows, length, arguments.repeats))
        del base
    for line in table(results.rows):
        print(line)
    return 0


def parity(device: torch.device) -> dict[str, float]:
    """Relative errors of packed rows with two prefixes, output and gradients, against float64."""
    torch.manual_seed(0)
    dtype, lengths = torch.bfloat16 if device.type == "cuda" else torch.float32, (37, 200, 5)
    shapes = [(1, 8, 242, 64), (1, 2, 242, 64), (1, 2, 242, 64), (2, 48, 64), (2, 48, 64), (2, 17, 64), (2, 17, 64)]
    given = [torch.randn(*shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes]
    exact = [tensor.detach().double().cpu().requires_grad_() for tensor in given]
    call = AttentionCall(given[0], given[1], given[2], None, None, True, 0.125)
    rows: list[int | None] = [*[0] * 37, *[1] * 200, *[0] * 5]
    plan = RowMap(rows).plan((0, 1), (48, 17), 242, 1, device)
    shared = Shared(plan, *laid_out([given[3], given[5]], [given[4], given[6]]))
    output = two_part_attention(call, shared, backends.choose(call), Segments(lengths, lengths))
    pieces = [torch.split(tensor, list(lengths), 2) for tensor in exact[:3]]
    kvs = [KV(exact[3], exact[4]), KV(exact[5], exact[6]), KV(exact[3], exact[4])]
    own = [
        reference_attention(AttentionCall(q, k, v, None, None, True, 0.125), [kv])
        for q, k, v, kv in zip(*pieces, kvs, strict=True)
    ]
    expected = torch.cat(own, 2)
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), exact)
    found = torch.autograd.grad((output * weight.to(output)).sum(), given)
    errors = [relative(output, expected), *(relative(one, other) for one, other in zip(found, wanted, strict=True))]
    if max(errors) > 3e-2:
        raise SystemExit(f"the kernels are wrong, nothing was measured: relative errors {errors}")
    return {"output": errors[0], "worst_gradient": max(errors[1:])}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.detach().double().cpu() - expected).norm() / expected.norm())


def base_of(name: str, device: torch.device) -> foreword.Base:
    hidden, inner, layers, heads, kv_heads, vocabulary, _ = SHAPES[name]
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocabulary, max_position_embeddings=8192, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    with device:
        model = LlamaForCausalLM(config).to(torch.bfloat16 if device.type == "cuda" else torch.float32)
    return foreword.Base(model, name=name, weights_hash=lambda: "sha256:random")


def rows_of(count: int, sequence: int) -> list[Example]:
    """Rows from half the sequence length to the whole, like real data: uneven."""
    rows = []
    for number in range(count):
        size = sequence - number * sequence // (2 * count)
        ids = [3 + (7 * number + 13 * place) % 250 for place in range(size)]
        rows.append(Example(tuple(ids[: size // 2]), tuple(ids[size // 2 :]), "", "", (), ""))
    return rows


def measure(base: foreword.Base, who: str, rows: Sequence[Example], length: int, repeats: int) -> dict[str, Any]:
    """Median seconds of a step and peak memory above the weights; out of memory is a result too."""
    cuda = base.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else 0
    tokens = sum(row.num_tokens for row in rows)
    try:
        with checkpointed_layers(base, who.endswith("checkpointed")):
            seconds = timed(step_of(base, who, length), rows, repeats, cuda)
    except torch.OutOfMemoryError:
        return {"seconds": float("inf"), "tokens_per_second": 0.0, "gigabytes": float("inf")}
    peak = (torch.cuda.max_memory_allocated() - before) / 1e9 if cuda else 0.0
    return {"seconds": seconds, "tokens_per_second": tokens / seconds, "gigabytes": peak}


def step_of(base: foreword.Base, who: str, length: int) -> Step:
    if who == "limit":
        return the_limit(base)
    if who == "peft prefix":
        return peft_step(base, length)
    return ours(base, "direct", length)[1]


def timed(step: Step, rows: Sequence[Example], repeats: int, cuda: bool) -> float:
    wait: Callable[[], None] = torch.cuda.synchronize if cuda else lambda: None
    seconds = []
    for number in range(repeats + 2):
        wait()
        began = time.perf_counter()
        step(rows)
        wait()
        if number > 1:
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    columns = (
        "case | limit, s | foreword, times it | checkpointed, times it | times PEFT's tokens/s | GB: foreword, PEFT"
    )
    lines = [f"| {columns} |", "|---|---|---|---|---|---|"]
    for key in [key.removesuffix(", limit") for key in rows if key.endswith(", limit")]:
        own = {who: rows.get(f"{key}, {who}", {}) for who in WHO}
        limit = float(own["limit"]["seconds"])
        shown = [f"{float(own[who]['seconds']) / limit:.3f}" for who in ("foreword", "foreword, checkpointed")]
        peer = float(own["peft prefix"]["tokens_per_second"])
        times = f"{float(own['foreword']['tokens_per_second']) / peer:.2f}" if peer else "–"
        memory = ", ".join(f"{float(own[who]['gigabytes']):.1f}" for who in ("foreword", "peft prefix"))
        lines.append(f"| {key} | {limit:.4f} | {' | '.join(shown)} | {times} | {memory} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
