"""Numbers from the host on a device, without waiting for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def placed(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`values` (a number, or nested sequences of numbers) as a tensor on `device`.

    `torch.tensor(values, device="cuda")` waits until the GPU has done all that was launched before. From pinned
    memory the copy is only queued, so that the next step can be made ready while this one runs.
    """
    made = torch.tensor(values, dtype=dtype)
    if device.type != "cuda":
        return made.to(device)
    return made.pin_memory().to(device, non_blocking=True)
