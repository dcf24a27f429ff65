"""A base that carries a PEFT LoRA (Hu et al. 2021). Prefix and adapter are each trained or frozen.

PEFT implements the adapter. This file loads it, separates it from the base's own weights, hashes it and saves it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from torch import nn

from foreword.errors import ConfigError, DependencyError, ModelError, UnsupportedModelError
from foreword.files import new_folder, read_json, write_json
from foreword.models.weights import hash_tensors
from foreword.prefix.records import public_name


def carries_lora(model: Any) -> bool:
    """Return True if PEFT has put a LoRA on `model`. Raises `UnsupportedModelError` for another kind of adapter."""
    configs = getattr(model, "peft_config", None) or {}
    for name, config in configs.items():
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if kind != "LORA":
            raise UnsupportedModelError(
                f"the base carries the PEFT adapter {name!r} of type {kind}; only LoRA is supported"
            )
    return bool(configs)


def without_lora(model: Any) -> Any:
    """Return the Transformers model inside; its class is the base's architecture."""
    return model.get_base_model() if carries_lora(model) and hasattr(model, "get_base_model") else model


def load_lora(model: Any, folder: str | Path) -> Any:
    """Put the adapter saved in `folder` on `model`. Raises `DependencyError` or `ModelError`."""
    require_peft()
    from peft import PeftModel
    from safetensors import SafetensorError

    if not (Path(folder) / "adapter_config.json").is_file():
        raise ModelError(f"{folder} is no PEFT adapter: adapter_config.json is not in it")
    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder} has no adapter_model.safetensors (pickled adapters are not read)")
    try:
        return PeftModel.from_pretrained(model, str(folder), torch_device=str(next(model.parameters()).device))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"the adapter in {folder} can't be put on this base: {' '.join(str(error).split())}"
        ) from error


def save_lora(model: Any, folder: Path) -> Path:
    """Save the active adapter alone, in PEFT's format, atomically. Raises `StorageError`."""
    name = active_lora(model)
    with new_folder(folder) as temporary:
        model.save_pretrained(temporary, safe_serialization=True, selected_adapters=[name])
        if (temporary / name).is_dir():  # PEFT puts each adapter but "default" into a subfolder
            for file in (temporary / name).iterdir():
                file.replace(temporary / file.name)
            (temporary / name).rmdir()
        _leave_out_places(temporary)
    return folder


def _leave_out_places(folder: Path) -> None:
    """Name the base of a saved adapter without its path, and remove PEFT's model card, which has it too."""
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / "adapter_config.json"
    config = read_json(file)
    if isinstance(name := config.get("base_model_name_or_path"), str):
        write_json(file, config | {"base_model_name_or_path": public_name(name)})


def active_lora(model: Any) -> str:
    """Return the name of the active adapter. Raises `ConfigError` unless exactly one is active."""
    active = getattr(model, "active_adapters", [])
    names = list(active() if callable(active) else active)
    if len(names) != 1:
        raise ConfigError("train", f"one LoRA can be trained at a time, but {len(names)} are active: {names}")
    return str(names[0])


def lora_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the active adapter's parameters by name. Raises `ConfigError` if there are none."""
    suffix = f".{active_lora(model)}" if carries_lora(model) else ""
    parameters = {
        name: parameter
        for name, parameter in model.named_parameters()
        if "lora_" in name and f"{suffix}." in f"{name}."
    }
    if not suffix or not parameters:
        raise ConfigError("train", "the base carries no LoRA; load it with one, or put one on with PEFT")
    return parameters


def combined_hash(model: nn.Module, base_hash: str | None) -> str:
    """Return the hash of a base's weights together with that of its adapter.

    base_hash: hash of the base's weights; None: hash the weights in memory.
    """
    weights = dict(model.state_dict())
    adapter = {name: tensor for name, tensor in weights.items() if "lora_" in name or "modules_to_save" in name}
    rest = {name: tensor for name, tensor in weights.items() if name not in adapter}
    return f"{base_hash or hash_tensors(rest)}+lora:{hash_tensors(adapter).removeprefix('sha256:')}"


def require_peft() -> None:
    if importlib.util.find_spec("peft") is None:
        raise DependencyError("a LoRA needs peft: pip install peft")
