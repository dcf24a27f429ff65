"""`Form`: how one tensor is stored and trained. `Student`: a prefix whose tensors are in such forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from foreword.prefix import KV, Prefix
from foreword.prefix.encoding import Encoded


@dataclass(frozen=True)
class Compressed:
    """A smaller prefix: its plain tensors, and the stored form of those that have one (name → `Encoded`)."""

    prefix: Prefix
    encoding: Mapping[str, Encoded]


class Form(Protocol):
    """How one tensor `[heads, m, width]` is stored."""

    def start(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors that are trained in place of `tensor`. Their value is as near to it as the form allows."""

    def value(self, trained: Sequence[Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return the tensor that attention sees, differentiable in `trained`. dtype: that of the saved prefix."""

    def stored(self, trained: Sequence[Tensor], shape: torch.Size, dtype: torch.dtype) -> Encoded | None:
        """Return the stored form; None: the tensor is stored plainly, in `dtype`."""


class Plain:
    """A tensor that is stored and trained as it is."""

    def start(self, tensor: Tensor) -> list[Tensor]:
        return [tensor]

    def value(self, trained: Sequence[Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return trained[0]

    def stored(self, trained: Sequence[Tensor], shape: torch.Size, dtype: torch.dtype) -> Encoded | None:
        return None


PLAIN = Plain()


class Student(nn.Module):
    """A prefix whose slots' tensors are each in the form that `form_of` returns for them.

    Parameters are float32, or of the tensor's dtype if that is wider. Extra tensors are left out: softmax attention
    doesn't read them, and they may describe the uncompressed prefix.
    """

    def __init__(self, prefix: Prefix, form_of: Callable[[Tensor], Form]) -> None:
        super().__init__()
        self._prefix = prefix
        self._tensors = {
            f"{name}.{suffix}": tensor
            for name, kv in prefix.slots.items()
            for suffix, tensor in zip(_SUFFIXES, kv, strict=True)
        }
        self._forms = {name: form_of(tensor) for name, tensor in self._tensors.items()}
        self._trained = nn.ModuleList(
            nn.ParameterList(self._forms[name].start(_wide(tensor))) for name, tensor in self._tensors.items()
        )

    def forward(self) -> Prefix:
        """Return the current prefix, differentiable with respect to the parameters."""
        values = {
            name: self._forms[name].value(list(trained), tensor.shape, tensor.dtype)
            for (name, tensor), trained in self._each()
        }
        return self._with(values)

    def finish(self) -> Compressed:
        """Return the prefix as it will be loaded again, and its encoding, on the CPU and in the original dtypes."""
        values: dict[str, Tensor] = {}
        encoding: dict[str, Encoded] = {}
        for (name, tensor), trained in self._each():
            parameters = [parameter.detach().cpu() for parameter in trained]
            stored = self._forms[name].stored(parameters, tensor.shape, tensor.dtype)
            if stored is None:
                values[name] = parameters[0].to(tensor.dtype, copy=True)
            else:
                encoding[name] = stored
                values[name] = stored.decode(tensor.shape, tensor.dtype)
        prefix = self._with(values)
        prefix.require_finite()
        return Compressed(prefix, encoding)

    def _each(self) -> zip[tuple[tuple[str, Tensor], nn.ParameterList]]:
        return zip(self._tensors.items(), self._trained, strict=True)  # type: ignore[arg-type]

    def _with(self, values: Mapping[str, Tensor]) -> Prefix:
        original = self._prefix
        slots = {name: KV(*(values[f"{name}.{suffix}"] for suffix in _SUFFIXES)) for name in original.slots}
        return Prefix(slots, original.position_offset, original.base, method=original.method, record=original.record)


_SUFFIXES = ("key", "value")


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
