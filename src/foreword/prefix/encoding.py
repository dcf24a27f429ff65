"""Stored forms of a slot's tensor that take fewer bytes than the tensor, and their decoding.

    svd     left `[m, r]` and right `[r, heads · width]`, of the tensor's own dtype; their product is the tensor
            with one row per token
    int8    int8 `[heads, m, width]` and scale `[heads, 1, width]` float16; the tensor is their product

Decoding gives the same bits on every machine, because the content digest is computed from the decoded tensors. It works
in float64, where a product of two factors of float32 or less is exact. It adds in a fixed order, never by a matrix
product. It rounds to 16 bits through float32, because libraries differ in how they round from float64 directly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreword.errors import PrefixError, PrefixFormatError

KINDS = ("svd", "int8")
# Limits that keep a small file from using all memory, or much time
MOST = 2**28  # numbers in one decoded tensor
_MOST_BYTES = 2**30  # of all decoded tensors
_FREE_BYTES = 2**26  # up to here the size of what is stored doesn't matter
_MOST_GROWTH = 128  # decoded bytes for each stored byte, above that
_MOST_PRODUCTS = 2**33  # rank · numbers, of all factored tensors
_AT_ONCE = 2**16  # numbers that are decoded at a time, in float64


@dataclass(frozen=True)
class Encoded:
    """One tensor in its stored form. kind: one of `KINDS`. parts: the stored tensors, named as in the table above."""

    kind: str
    parts: Mapping[str, Tensor]

    def decode(self, shape: torch.Size | list[int], dtype: torch.dtype) -> Tensor:
        """Return the tensor `[heads, m, width]` of `dtype`, on the device of the parts. A few tokens at a time."""
        heads, length, width = shape
        any_part = next(iter(self.parts.values()))
        whole = torch.empty(heads, length, width, dtype=dtype, device=any_part.device)
        step = max(1, _AT_ONCE // max(1, heads * width))
        for start in range(0, length, step):
            tokens = slice(start, start + step)
            whole[:, tokens] = _rounded(self._tokens(tokens, heads, width), dtype)
        return whole

    def _tokens(self, tokens: slice, heads: int, width: int) -> Tensor:
        """Return some tokens in float64, `[heads, …, width]`."""
        if self.kind == "int8":
            return self.parts["int8"].detach()[:, tokens].double() * self.parts["scale"].detach().double()
        left, right = self.parts["left"].detach()[tokens].double(), self.parts["right"].detach()
        total = left.new_zeros(left.shape[0], right.shape[1])
        for index in range(left.shape[1]):
            total += left[:, index, None] * right[index].double()
        return from_tokens(total, [heads, left.shape[0], width])

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


def check_total(file: Path, specs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `PrefixFormatError` if decoding what the manifest describes takes too much memory or time.

    specs: tensor name → its entry, checked by `check_spec`.
    """
    decoded_bytes = stored_bytes = products = 0
    for name, spec in specs.items():
        if "encoding" in spec:
            decoded_bytes += _num_bytes(spec)
            stored_bytes += sum(map(_num_bytes, stored_specs(name, spec).values()))
            products += spec.get("rank", 1) * math.prod(spec["shape"])
    most = min(_MOST_BYTES, max(_FREE_BYTES, _MOST_GROWTH * stored_bytes))
    if decoded_bytes > most:
        raise PrefixFormatError(
            f"{file}: its encoded tensors have {decoded_bytes:,} bytes when decoded; at most {most:,} are allowed"
        )
    if products > _MOST_PRODUCTS:
        raise PrefixFormatError(f"{file}: decoding its tensors takes {products:,} products; the ranks are too high")


def _num_bytes(spec: Mapping[str, Any]) -> int:
    size: int = getattr(torch, spec["dtype"]).itemsize
    return size * int(math.prod(spec["shape"]))


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


def encoded(name: str, spec: Mapping[str, Any], stored: Mapping[str, Tensor]) -> Encoded:
    """Return the stored form of the tensor `name`, which `spec` says is encoded. stored: all tensors of the file."""
    parts = {part.removeprefix(f"{name}."): stored[part] for part in stored_specs(name, spec)}
    return Encoded(spec["encoding"], parts)


def decoded(name: str, spec: Mapping[str, Any], stored: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Return the tensor `name`. stored: all tensors of the file."""
    if "encoding" not in spec:
        return stored[name]
    return encoded(name, spec, stored).decode(spec["shape"], dtype)


def _rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(torch.promote_types(dtype, torch.float32)).to(dtype)
