"""Copy numbers from the host to a device without waiting for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def placed(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return `values` (a number, or nested sequences of numbers) as a tensor on `device`.

    `torch.tensor(values, device="cuda")` waits until the GPU has finished all earlier work. A copy from pinned memory
    is only queued, so the host can prepare the next step while the GPU computes this one.
    """
    tensor = torch.tensor(values, dtype=dtype)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
