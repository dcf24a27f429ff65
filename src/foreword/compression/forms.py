"""`Form`: how one tensor is stored, and what of it is trained; `Student`: a prefix held in such forms."""

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
        """What is trained in its place, at first equal to `tensor` as far as the form can."""

    def value(self, trained: Sequence[Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """The tensor that attention sees, differentiable with respect to `trained`; dtype: the one it is stored for."""

    def stored(self, trained: Sequence[Tensor], shape: torch.Size, dtype: torch.dtype) -> Encoded | None:
        """Its stored form; None: as it is, in `dtype`."""


class Plain:
    """The tensor itself."""

    def start(self, tensor: Tensor) -> list[Tensor]:
        return [tensor]

    def value(self, trained: Sequence[Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return trained[0]

    def stored(self, trained: Sequence[Tensor], shape: torch.Size, dtype: torch.dtype) -> Encoded | None:
        return None


PLAIN = Plain()


class Student(nn.Module):
    """A prefix whose slots' tensors are held in the form that `form_of` gives each of them.

    Parameters are float32, or the tensor's own dtype where that is wider. Extra tensors are left behind: softmax
    attention doesn't read them, and they may describe what the prefix was before.
    """

    def __init__(self, prefix: Prefix, form_of: Callable[[Tensor], Form]) -> None:
        super().__init__()
        self._prefix = prefix
        self._tensors = {f"{name}.{part}": kv[i] for name, kv in prefix.slots.items() for i, part in enumerate(_PARTS)}
        self._forms = {name: form_of(tensor) for name, tensor in self._tensors.items()}
        self._trained = nn.ModuleList(
            nn.ParameterList(self._forms[name].start(_wide(tensor))) for name, tensor in self._tensors.items()
        )

    def forward(self) -> Prefix:
        """The prefix as it is now, differentiable with respect to the parameters."""
        values = {
            name: self._forms[name].value(list(trained), tensor.shape, tensor.dtype)
            for (name, tensor), trained in self._each()
        }
        return self._with(values)

    def finish(self) -> Compressed:
        """The prefix as it will be loaded again, and its encoding; on the CPU, in the dtypes it came in."""
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
        old = self._prefix
        slots = {name: KV(*(values[f"{name}.{part}"] for part in _PARTS)) for name in old.slots}
        return Prefix(slots, old.position_offset, old.base, method=old.method, record=old.record)


_PARTS = ("key", "value")


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
