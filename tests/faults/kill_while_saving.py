"""Save checkpoints and a prefix over and over in a child process, kill it at random moments, and load what is there.

    python tests/faults/kill_while_saving.py ROUNDS FOLDER

Prints one JSON line: rounds, the newest step, how many unfinished writes the kills left, and how many of them are still
there when the next save, and going on with the run, have cleared up.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from foreword.files import recover
from foreword.folders import is_temporary
from foreword.methods.direct import DirectProducer
from foreword.prefix import KV, Fingerprint, Prefix
from foreword.training.checkpoint import RunState, find_checkpoint, load_checkpoint, prune, save_checkpoint
from foreword.training.folder import RunFolder
from foreword.training.trained import Trained

BASE = Fingerprint("TinyForCausalLM", "tiny", 64, 4, 260, "sha256:0", "tiny", None)


def make(seed: int) -> tuple[Trained, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    slots = {f"decoder.{i}": KV(torch.randn(2, 32, 16), torch.randn(2, 32, 16)) for i in range(4)}
    trained = Trained(DirectProducer(Prefix(slots, 32, BASE)))
    return trained, torch.optim.AdamW(trained.parameters())


def save_for_ever(folder: Path, first: int) -> None:
    trained, optimizer = make(0)
    step = first
    while True:
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.fill_(float(step))
        save_checkpoint(folder / "checkpoints", trained, optimizer, RunState(step), {}, {})
        prune(folder / "checkpoints", 2)
        trained.finished_prefix().with_record("direct", {"step": step}).save(folder / "prefix")
        step += 1


def check(folder: Path) -> int:
    """The step of the newest checkpoint; every part of it and of the prefix must be of one step."""
    found = find_checkpoint(folder)
    trained, optimizer = make(1)
    step = load_checkpoint(found, trained, optimizer).step
    if any(bool((parameter != float(step)).any()) for parameter in trained.parameters()):
        raise SystemExit(f"{found} is of several steps")
    if not (folder / "prefix").exists():  # where the system can't swap two names in one step
        recover(folder / "prefix")
    prefix = Prefix.load(folder / "prefix")
    values = {float(value) for _, tensor in prefix.tensors() for value in tensor.flatten()[:2]}
    if values != {float(prefix.record["step"])}:
        raise SystemExit(f"the prefix is of several steps: {values}")
    return step


def unfinished(folder: Path) -> set[Path]:
    """Temporary files and folders, but for those within others."""
    return {path for path in (*folder.iterdir(), *(folder / "checkpoints").iterdir()) if is_temporary(path.name)}


def main(rounds: int, folder: Path) -> None:
    torch.set_num_threads(1)
    chance, newest = random.Random(0), 0
    first, first_optimizer = make(0)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.fill_(0.0)
    save_checkpoint(folder / "checkpoints", first, first_optimizer, RunState(0), {}, {})
    first.finished_prefix().with_record("direct", {"step": 0}).save(folder / "prefix")
    left = 0
    for _ in range(rounds):
        before = unfinished(folder)
        child = os.fork()
        if child == 0:
            save_for_ever(folder, newest + 1)
        time.sleep(chance.uniform(0.005, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        step = check(folder)
        if step < newest:
            raise SystemExit(f"went back from step {newest} to {step}")
        newest = step
        left += len(unfinished(folder) - before)
    first.finished_prefix().save(folder / "prefix")
    RunFolder(folder).mend(newest, newest)
    print(json.dumps({"rounds": rounds, "newest_step": newest, "left": left, "still": len(unfinished(folder))}))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
