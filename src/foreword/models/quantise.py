"""Quantised bases: weights in 8 or 4 bits, everything else unchanged. Prefixes attach in the same way.

    int8        torchao's Int8WeightOnlyConfig, linear layers, CPU and CUDA
    bnb-8bit    bitsandbytes LLM.int8() (Dettmers et al. 2022), CUDA
    bnb-4bit    bitsandbytes NF4 (Dettmers et al. 2023, QLoRA), CUDA

The frozen weights get no gradients. Gradients flow through them to inputs and prefix.
"""

from __future__ import annotations

from typing import Any

import torch

from foreword.errors import ConfigError
from foreword.extras import installed, missing

QUANTISATIONS = ("int8", "bnb-8bit", "bnb-4bit")
_PACKAGE = {"int8": "torchao", "bnb-8bit": "bitsandbytes", "bnb-4bit": "bitsandbytes"}


def loading_options(kind: str, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Return options of Transformers' `from_pretrained` for a base quantised as `kind`.

    Raises `ConfigError` for an unknown kind or one that `device` can't run, `DependencyError` without its package.
    """
    if kind not in QUANTISATIONS:
        raise ConfigError("quantise", f"must be one of {', '.join(QUANTISATIONS)}, not {kind!r}")
    package = _PACKAGE[kind]
    if kind != "int8" and not device.startswith("cuda"):
        raise ConfigError("quantise", f"{kind!r} needs a CUDA device, not {device}; int8 runs on CPU")
    if not installed(package):
        raise missing(package, f"for quantise {kind!r}")
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
    settings: dict[str, Any] = {"load_in_8bit": True}
    if kind == "bnb-4bit":
        settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    return {"quantization_config": BitsAndBytesConfig(**settings), "device_map": {"": device}}
