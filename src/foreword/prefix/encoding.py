"""Stored forms of a slot's tensor that take fewer bytes than the tensor, and their decoding.

    svd     left `[m, r]` and right `[r, heads · width]`, of the tensor's own dtype; their product is the tensor
            with one row per token
    int8    int8 `[heads, m, width]` and scale `[heads, 1, width]` float16; the tensor is their product

Decoding gives the same bits on every machine, because the content digest is computed from the decoded tensors. It works
in float64, where a product of two factors of float32 or less is exact. It adds in a fixed order, never by a matrix
product. It rounds to 16 bits through float32, because libraries differ in how they round from float64 directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreword.errors import PrefixError, PrefixFormatError

KINDS = ("svd", "int8")
MOST = 2**28  # numbers in one decoded tensor; the limit keeps a small file from using all memory


@dataclass(frozen=True)
class Encoded:
    """One tensor in its stored form. kind: one of `KINDS`. parts: the stored tensors, named as in the table above."""

    kind: str
    parts: Mapping[str, Tensor]

    def decode(self, shape: torch.Size | list[int], dtype: torch.dtype) -> Tensor:
        """Return the tensor `[heads, m, width]` of `dtype`, on the device of the parts."""
        parts = {name: part.detach().double() for name, part in self.parts.items()}
        if self.kind == "int8":
            return _rounded(parts["int8"] * parts["scale"], dtype)
        left, right = parts["left"], parts["right"]
        total = left.new_zeros(left.shape[0], right.shape[1])
        for index in range(left.shape[1]):
            total += left[:, index, None] * right[index]
        return _rounded(from_tokens(total, shape), dtype)

    @property
    def spec(self) -> dict[str, Any]:
        """The manifest's entries beside shape and dtype."""
        rank = {"rank": int(self.parts["left"].shape[1])} if self.kind == "svd" else {}
        return {"encoding": self.kind, **rank}


def by_token(tensor: Tensor) -> Tensor:
    """`[heads, m, width]` → `[m, heads · width]`: one row per virtual token."""
    return tensor.transpose(0, 1).reshape(tensor.shape[1], -1)


def from_tokens(matrix: Tensor, shape: torch.Size | list[int]) -> Tensor:
    """Invert `by_token`."""
    heads, length, width = shape
    return matrix.reshape(length, heads, width).transpose(0, 1).contiguous()


def stored_tensors(tensors: Mapping[str, Tensor], encoding: Mapping[str, Encoded]) -> dict[str, Tensor]:
    """Return the tensors that the file holds for `tensors`, by name.

    Raises `PrefixError` if an encoding has no tensor, or decodes to another one.
    """
    if unknown := sorted(set(encoding) - {name for name in tensors if not name.startswith("extra.")}):
        raise PrefixError(f"there is no tensor {unknown[0]!r} in the prefix that could be stored encoded")
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name not in encoding:
            stored[name] = tensor
            continue
        if not torch.equal(encoding[name].decode(tensor.shape, tensor.dtype).to(tensor.device), tensor):
            raise PrefixError(f"{name}: its {encoding[name].kind} encoding decodes to something else")
        for part, value in encoding[name].parts.items():
            stored[f"{name}.{part}"] = value.detach().cpu().contiguous()
    return stored


def check_spec(file: Path, name: str, spec: Mapping[str, Any], version: int) -> None:
    """Raise `PrefixFormatError` if the encoding in the manifest's entry `spec` of `name` is not possible."""
    kind = spec.get("encoding")
    if "encoding" not in spec:
        return
    if version == 1 or name.startswith("extra."):
        raise PrefixFormatError(f"{file}: {name} can't be stored encoded here, but has encoding {kind!r}")
    if kind not in KINDS:
        raise PrefixFormatError(f"{file}: {name} has encoding {kind!r}, which is not known (known: {', '.join(KINDS)})")
    heads, length, width = shape = spec["shape"] if len(spec["shape"]) == 3 else [0, 0, 0]
    if not 0 < heads * length * width <= MOST:
        raise PrefixFormatError(f"{file}: {name} of shape {spec['shape']} can't have an encoding")
    rank, most = spec.get("rank"), min(length, heads * width)
    if kind == "svd" and not (type(rank) is int and 1 <= rank <= most):
        raise PrefixFormatError(f"{file}: {name} of shape {shape} needs a 'rank' from 1 to {most}, got {rank!r:.40}")
    known = {"shape", "dtype", "encoding"} | ({"rank"} if kind == "svd" else set())
    if unknown := sorted(set(spec) - known):
        raise PrefixFormatError(f"{file}: {name} has {unknown[0]!r}, which {kind} does not know")


def stored_specs(name: str, spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return name → shape and dtype of the tensors that the file holds for the manifest's entry `spec` of `name`."""
    kind = spec.get("encoding")
    if kind is None:
        return {name: dict(spec)}
    heads, length, width = spec["shape"]
    if kind == "int8":
        return {
            f"{name}.int8": {"shape": [heads, length, width], "dtype": "int8"},
            f"{name}.scale": {"shape": [heads, 1, width], "dtype": "float16"},
        }
    return {
        f"{name}.left": {"shape": [length, spec["rank"]], "dtype": spec["dtype"]},
        f"{name}.right": {"shape": [spec["rank"], heads * width], "dtype": spec["dtype"]},
    }


def decoded(name: str, spec: Mapping[str, Any], stored: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Return the tensor `name`. stored: the tensors that `stored_specs` names."""
    if "encoding" not in spec:
        return stored[name]
    parts = {part.removeprefix(f"{name}."): tensor for part, tensor in stored.items()}
    return Encoded(spec["encoding"], parts).decode(spec["shape"], dtype)


def _rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(torch.promote_types(dtype, torch.float32)).to(dtype)
