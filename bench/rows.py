"""Reading and tokenising many rows: seconds and memory, as a list of Python objects and in the store on the disk.

    python bench/rows.py [--rows 800000] [--out FILE]

Synthetic JSONL of about 100 tokens a row, made in a temporary folder, with the tokenizer of the bundled SmolLM2-135M. A
process of its own for each way does what a run does before its first step: it reads the rows, holds 96 of them out,
hashes the rest, and makes the first batch. `list`: all rows as Python objects, the tokenizer with one thread. `store`:
as it is by default. `kept`: once more, from the cache. Anonymous memory is what can't be dropped; the pages of mapped
files can. Resumable way by way.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import foreword
from foreword import status
from foreword.data import compact, row_cache
from foreword.training.rows import digest, load_rows, order_of, task_of
from results import Results, machine

WAYS = {"list": "as a list, one thread", "store": "in the store", "kept": "from the cache"}
COMMON = """
the of and to in is was for on with as by at from that which their has had were are this be it or an not but his her
they one all also more new first two time years city state world school team season known during between government
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=800_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rows.json")
    parser.add_argument("--worker", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measured(*arguments.worker)))
        return 0
    results = Results(arguments.out, {"machine": machine(), "rows": arguments.rows})
    with tempfile.TemporaryDirectory(prefix="foreword-bench-") as folder:
        data = Path(folder) / "rows.jsonl"
        written = write(data, arguments.rows)
        for way in ("store", "kept", "list"):
            results.cell(way, lambda way=way: worker(way, data, written))  # type: ignore[misc]
    for line in table(results.rows):
        print(line)
    return 0


def write(path: Path, count: int) -> int:
    """Write `count` rows, and return their bytes."""
    draw, words = random.Random(0), COMMON.split()
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            asked, answered = draw.choices(words, k=draw.randint(40, 80)), draw.choices(words, k=draw.randint(15, 50))
            file.write(json.dumps({"input": f"{number} {' '.join(asked)}", "target": " ".join(answered)}) + "\n")
    return path.stat().st_size


def worker(way: str, data: Path, size: int) -> dict[str, Any]:
    """One way in a process of its own, with a cache beside the data."""
    environment = os.environ | {"FOREWORD_CACHE": str(data.parent / "cache"), "RANK": "1"}
    environment |= {"TOKENIZERS_PARALLELISM": "false"} if way == "list" else {}
    models = Path(os.environ.get("FOREWORD_CACHE", Path.home() / ".cache" / "foreword")) / "models"
    (data.parent / "cache").mkdir(exist_ok=True)
    if models.is_dir() and not (data.parent / "cache" / "models").exists():
        (data.parent / "cache" / "models").symlink_to(models)  # the bundled model is not converted again
    done = subprocess.run(
        [sys.executable, __file__, "--worker", way, str(data)],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    stored = sum(file.stat().st_size for file in (data.parent / "cache" / "rows").rglob("*") if file.is_file())
    return found | {"source_megabytes": size / 1e6, "stored_megabytes": 0 if way == "list" else stored / 1e6}


def measured(way: str, data: str) -> dict[str, Any]:
    """What a run does with its rows before its first step."""
    base = foreword.load("smollm2-135m", device="cpu")
    if way == "list":
        vars(importlib.import_module("foreword.data.examples"))["LISTED_ITEMS"] = sys.maxsize
        row_cache.LARGE = sys.maxsize
    config = foreword.TrainConfig(data=data, template="{input}\nAnswer:")
    before, began = memory(), time.perf_counter()
    task = task_of(base, config)
    with status.listening(status.Silent()):
        rows = load_rows(task, config)
        read = time.perf_counter()
        hashed = digest(rows.training)
        ready = time.perf_counter()
        batch = [rows.training[index] for index in next(order_of(task, rows.training, config, 0))]
    ended = time.perf_counter()
    now = memory()
    return {
        "rows": len(rows.training) + len(rows.held_out), "digest": hashed, "batch": len(batch),
        "stored": isinstance(getattr(rows.training, "_items", None), compact.Compact),
        "read_seconds": read - began, "hash_seconds": ready - read, "batch_seconds": ended - ready,
        "peak_megabytes": now["peak"] - before["peak"], "anonymous_megabytes": now["anonymous"] - before["anonymous"],
    }  # fmt: skip


def memory() -> dict[str, float]:
    """Megabytes: the peak so far, and what is anonymous now."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    anonymous = next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, "anonymous": anonymous / 1e3}


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "| way | read and tokenise, s | hash, s | first batch, s | peak, MB | anonymous, MB | on the disk, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, words in WAYS.items():
        if way in rows:
            row = rows[way]
            numbers = (
                f"{row['read_seconds']:.0f}", f"{row['hash_seconds']:.0f}", f"{row['batch_seconds']:.1f}",
                f"{row['peak_megabytes']:,.0f}", f"{row['anonymous_megabytes']:,.0f}",
                f"{row['stored_megabytes']:,.0f}",
            )  # fmt: skip
            lines.append(f"| {words} | {' | '.join(numbers)} |")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
