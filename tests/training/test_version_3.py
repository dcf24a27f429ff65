"""A checkpoint of an older version goes on bit for bit as if the run had never stopped.

Version 3 had other names for its tensors; version 4 had no digest of its manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import foreword
import head_helpers
from foreword.base import Base
from foreword.errors import CheckpointError, OldFormatWarning
from foreword.training.checkpoint import list_checkpoints
from tiny import byte_tokenizer, tiny_base, tiny_model
from training_helpers import copy_until, equal, final_state, settings, tensors, untimed, write_rows

NEWER = ("objective", "samples")  # settings that version 3 did not know


def older_name(name: str, head: bool, lora: bool) -> str:
    """What version 3 called a tensor of version 4.

    There the run's one module was the producer, within a module for the LoRA, within one for the head. Parameters began
    with `producer.`, but AdamW's state was named by the parameter within that module: `optimizer.keys.0.exp_avg`.
    """
    kind, _, rest = name.partition(".")
    if kind == "optimizer":
        return f"optimizer.{older_name(rest, head, lora).removeprefix('producer.')}"
    if kind == "producer":
        return f"producer.{'inner.' * (head + lora)}{rest}"
    if kind == "lora":
        return f"producer.{'inner.' * head}adapter.{rest}"
    return f"producer.head.{rest}" if kind == "head" else name


def make_older(run: Path, version: int = 3) -> None:
    """Turn the checkpoints of a run into ones of version 3 or 4."""
    for folder in list_checkpoints(run / "checkpoints"):
        file, manifest = folder / "state.safetensors", json.loads((folder / "state.json").read_text())
        kept = load_file(file)
        head, lora = (any(name.startswith(kind) for name in kept) for kind in ("head.", "lora."))
        if version == 3:
            kept = {older_name(name, head, lora): tensor for name, tensor in kept.items()}
            for name in NEWER:
                del manifest["config"][name]
        save_file(kept, file)
        for name in ("content", "bytes"):
            del manifest[name]
        manifest |= {"version": version, "digest": hashlib.sha256(file.read_bytes()).hexdigest()}
        (folder / "state.json").write_text(json.dumps(manifest))


def with_lora() -> Base:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return Base(peft.get_peft_model(tiny_model("llama"), config), byte_tokenizer(), name="tiny-lora")


CASES: dict[str, tuple[Callable[[], Base], dict[str, Any]]] = {
    "neither": (tiny_base, {}),
    "dropout and frozen tokens": (tiny_base, {"dropout": 0.3, "frozen_tokens": 1}),
    "a head": (lambda: tiny_base("bert"), {"task": "seq-cls"}),
    "a LoRA": (with_lora, {"train": "both"}),
    "a head and a LoRA": (with_lora, {"task": "seq-cls", "train": "both"}),
}


def test_the_older_names_are_those_that_version_3_wrote() -> None:
    assert older_name("producer.keys.0", False, False) == "producer.keys.0"
    assert older_name("optimizer.producer.keys.0.exp_avg", False, False) == "optimizer.keys.0.exp_avg"
    assert older_name("producer.keys.0", True, True) == "producer.inner.inner.keys.0"
    assert older_name("lora.0", True, True) == "producer.inner.adapter.0"
    assert older_name("optimizer.lora.0.step", False, True) == "optimizer.adapter.0.step"
    assert older_name("optimizer.head.bias.exp_avg", True, False) == "optimizer.head.bias.exp_avg"
    assert older_name("random.cpu", True, True) == "random.cpu"


@pytest.mark.parametrize(("case", "version"), [*((case, 3) for case in CASES), ("a head", 4)])
def test_it_goes_on_bit_for_bit(tmp_path, case, version) -> None:
    make_base, changes = CASES[case]
    changes = {"steps": 6, "checkpoint_every": 3, "validate_every": 3, "weight_decay": 0.01} | changes
    if "task" in changes:
        rows, configured = head_helpers.write(tmp_path, "seq-cls"), head_helpers.config
    else:
        rows, configured = write_rows(tmp_path), settings
    whole = foreword.train(make_base(), configured(rows, "whole", **changes))
    copy = copy_until(whole.run, rows / "copy", 3)
    make_older(copy, version)
    with pytest.warns(
        OldFormatWarning, match=r"state\.json has an older format, whose digest covers state\.safetensors"
    ):
        resumed = foreword.train(make_base(), configured(rows, resume=str(copy), **changes))
    assert equal(final_state(copy), final_state(whole.run))
    assert equal(tensors(resumed.prefix), tensors(whole.prefix))
    assert untimed(resumed.history) == untimed(whole.history)


def test_it_goes_on_with_no_other_settings(tmp_path) -> None:
    rows = write_rows(tmp_path)
    run = foreword.train(tiny_base(), settings(rows, steps=4)).run
    make_older(run)
    with (
        pytest.warns(OldFormatWarning),
        pytest.raises(CheckpointError, match="was made with batch_size 6, not 3"),
    ):
        foreword.train(tiny_base(), settings(rows, steps=4, resume=str(run), batch_size=3))
    with pytest.warns(OldFormatWarning):
        foreword.train(tiny_base(), settings(rows, steps=4, resume=str(run), samples=1))


@pytest.mark.parametrize("version", [2, 6, "3", 4.0, True, None])
def test_other_versions_are_refused_by_number(tmp_path, version) -> None:
    rows = write_rows(tmp_path)
    run = foreword.train(tiny_base(), settings(rows, steps=1)).run
    for folder in list_checkpoints(run / "checkpoints"):
        manifest = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps(manifest | {"version": version}))
    with pytest.raises(CheckpointError, match=rf"version {version!r} is not readable here \(known: 3, 4, 5\)"):
        foreword.train(tiny_base(), settings(rows, steps=1, resume=str(run)))
