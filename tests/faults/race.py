"""Save over and over to the same names, while another process reads them: `test_races` starts both.

    python tests/faults/race.py write FOLDER
    python tests/faults/race.py read FOLDER READS

The writer saves prefixes (and a head, and a checkpoint) of two lengths in turn. The reader prints one JSON line: reads,
those that found the one and the other, and errors by type.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from foreword.errors import ForewordError
from foreword.methods.direct import DirectProducer
from foreword.prefix import KV, Fingerprint, Prefix
from foreword.store import PrefixPool
from foreword.tasks.saved import read_states, save_task
from foreword.training.checkpoint import RunState, load_checkpoint, save_checkpoint
from foreword.training.trained import Trained

BASE = Fingerprint("TinyForCausalLM", "tiny", 64, 4, 260, "sha256:0", "tiny", None)
LENGTHS = (8, 9)


def made(length: int) -> Prefix:
    slots = {f"decoder.{i}": KV(*(torch.full((2, length, 16), float(length)) for _ in range(2))) for i in range(4)}
    return Prefix(slots, length, BASE, record={"length": length})


def trained(length: int) -> Trained:
    return Trained(DirectProducer(made(length)))


def task(length: int) -> Any:
    state = {"task": "seq-cls", "labels": [str(length)]}
    return SimpleNamespace(head=torch.nn.Linear(length, 1), state=lambda: state, template=None)


def write(folder: Path) -> None:
    while os.getppid() != 1:
        for length in LENGTHS:
            one = trained(length)
            made(length).save(folder / "pool" / "prefix")
            save_task(task(length), folder / "head")
            save_checkpoint(folder, one, torch.optim.AdamW(one.parameters()), RunState(7, stale=length), {}, {})


def read_all(folder: Path, number: int) -> int:
    """Read one of the three in turn; return its length, after checking that all of it is of that length."""
    if number % 3 == 0:
        prefix = Prefix.load(folder / "pool" / "prefix")
        values = {float(value) for _, tensor in prefix.tensors() for value in tensor.flatten()}
        assert values == {float(prefix.length)} == {float(prefix.record["length"])}
        return prefix.length
    if number % 3 == 1:
        states, tensors = read_states(folder / "head")
        length = int(states["task"]["labels"][0])
        assert tensors["task.weight"].shape == (1, length)
        return length
    for length in LENGTHS:
        one = trained(length)
        try:
            state = load_checkpoint(folder / "step-000007", one, torch.optim.AdamW(one.parameters()))
        except ForewordError as error:
            if "does not fit this method" not in str(error):  # it is of the other length
                raise
            continue
        assert state.stale == length
        return length
    return 0  # both times of the other length: the writer was in between


def read(folder: Path, reads: int) -> None:
    found: Counter[int] = Counter()
    errors: Counter[str] = Counter()
    base: Any = SimpleNamespace(dtype=torch.float32, device="cpu", require_fit=lambda prefix: None)
    for number in range(reads):
        pool = PrefixPool(base, folder / "pool")
        try:
            found[read_all(folder, number)] += 1
            if list(pool) != ["prefix"]:
                errors[f"pool lists {list(pool)}"] += 1
            pool["prefix"]
        except Exception as error:  # noqa: BLE001 - all that comes is reported
            errors[f"{type(error).__name__}: {error}"] += 1
    print(json.dumps({"reads": reads, "found": found, "errors": errors}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        read(Path(sys.argv[2]), int(sys.argv[3]))
