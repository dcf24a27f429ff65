"""A small prefix without a base, comparing prefixes, and damaging a manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from foreword.prefix import KV, Fingerprint, Prefix
from foreword.prefix.stored import MANIFEST

BASE = Fingerprint("LlamaForCausalLM", "llama", 64, 3, 260, weights="sha256:00", source="tiny")


def small(length: int = 3, dtype: torch.dtype = torch.float32) -> Prefix:
    generator = torch.Generator().manual_seed(0)
    slots = {
        f"decoder.{layer}": KV(*(torch.randn(2, length, 4, generator=generator).to(dtype) for _ in range(2)))
        for layer in range(2)
    }
    return Prefix(slots, length, BASE, method="direct", record={"template": "{input}\n", "step": 7})


def assert_same(one: Prefix, other: Prefix) -> None:
    assert list(one.slots) == list(other.slots)
    for name in one.slots:
        for a, b in zip(one.slots[name], other.slots[name], strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
    for name in ("position_offset", "base", "merge", "method"):
        assert getattr(one, name) == getattr(other, name)
    assert dict(one.record) == dict(other.record)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
