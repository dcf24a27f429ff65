"""`Trained`: all that a run trains, as one thing that is optimised, saved and resumed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from foreword.methods import Producer
from foreword.methods.base import ParameterGroup
from foreword.prefix import Prefix


class Trained(nn.Module):
    """The producer of a prefix, and where there are any the task's head and the base's LoRA.

    head_lr, lora_lr: their peak learning rates. train_prefix: whether the prefix learns, too.
    Names in its state dict begin with `producer.`, `head.` and `lora.`.
    """

    def __init__(
        self,
        producer: Producer,
        *,
        head: nn.Module | None = None,
        head_lr: float = 0.0,
        lora: Mapping[str, nn.Parameter] | None = None,
        lora_lr: float = 0.0,
        train_prefix: bool = True,
    ) -> None:
        super().__init__()
        self.producer = producer if train_prefix else producer.requires_grad_(False)
        self.head = head if head is not None and list(head.parameters()) else None
        self.lora = nn.ParameterList(lora.values()) if lora else None
        self._head_lr, self._lora_lr = head_lr, lora_lr

    def prefix(self) -> Prefix:
        """The prefix of this step, differentiable."""
        prefix: Prefix = self.producer()
        return prefix

    def finished_prefix(self) -> Prefix:
        """The prefix as plain tensors."""
        return self.producer.finish()

    def groups(self) -> list[ParameterGroup]:
        """What is trained, by learning rate."""
        groups = [group for group in self.producer.groups() if group.parameters]
        if self.lora is not None:
            groups.append(ParameterGroup(list(self.lora), self._lora_lr))
        if self.head is not None:
            groups.append(ParameterGroup(list(self.head.parameters()), self._head_lr))
        return groups

    def from_version_3(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a checkpoint of version 3, under the names they have now.

        There the head stood around the LoRA, and both around the producer: `producer.inner.inner.keys.0`.
        """
        head = "producer."
        lora = head + ("inner." if self.head is not None else "")
        producer = lora + ("inner." if self.lora is not None else "")
        moved = {f"{head}head.": "head.", f"{lora}adapter.": "lora.", producer: "producer."}
        return {_moved(name, moved): tensor for name, tensor in tensors.items()}


def _moved(name: str, moved: Mapping[str, str]) -> str:
    """`name`, or the parameter in `optimizer.<name>.<part>`, with its beginning as `moved` says."""
    front = "optimizer." if name.startswith("optimizer.") else ""
    rest = f"producer.{name.removeprefix(front)}" if front else name  # the optimizer's names left `producer.` out
    for old, new in moved.items():
        if rest.startswith(old):
            return front + new + rest.removeprefix(old)
    return name
