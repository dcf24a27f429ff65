"""A small prefix without a base, comparing prefixes, damaging a manifest, and older formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from foreword.prefix import KV, Fingerprint, Prefix
from foreword.prefix.stored import MANIFEST, TENSORS
from foreword.sealing import manifest_digest

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


def edit(folder: Path, change: Callable[[dict[str, Any]], object], sign: bool = True) -> None:
    """Change a manifest. sign: give it the digest of what it then says, unless the change gave it another."""
    manifest = json.loads((folder / MANIFEST).read_text())
    before = manifest.get("digest")
    change(manifest)
    if sign and "digest" in manifest and manifest["digest"] == before:
        manifest["digest"] = manifest_digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def make_old(folder: Path) -> Path:
    """Turn a saved prefix into what version 1 wrote, or version 2 if a tensor in it is encoded."""
    file, manifest = folder / TENSORS, json.loads((folder / MANIFEST).read_text())
    content = manifest.pop("content")
    save_file(load_file(file), file, metadata={"format": "foreword-prefix", "digest": content})
    version = 2 if '"encoding"' in json.dumps(manifest["slots"]) else 1
    (folder / MANIFEST).write_text(json.dumps(manifest | {"version": version, "digest": content}, indent=2))
    return folder
