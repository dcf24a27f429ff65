"""A base that carries a PEFT LoRA (Hu et al. 2021). Prefix and adapter are each trained or frozen.

PEFT implements the adapter. This file loads it, separates it from the base's own weights, hashes it and saves it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from foreword.errors import ConfigError, ModelError, UnsupportedModelError
from foreword.extras import installed, missing
from foreword.files import new_folder, read_json, write_json
from foreword.models.folder import UNREADABLE, read_config
from foreword.models.weights import hash_tensors
from foreword.plain import shown
from foreword.prefix.records import public_name

MOST_RANK = 8_192
_PATTERNED = (
    "target_modules", "exclude_modules", "layers_pattern", "target_parameters", "rank_pattern", "alpha_pattern",
)  # fmt: skip
MOST_REPEATS = 4  # in a pattern of module names


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
    """Put the adapter saved in `folder` on `model`. Raises `DependencyError` or `ModelError`.

    `base_model_name_or_path` of its configuration is not used, and not kept.
    """
    require_peft()
    from peft import PeftModel

    check_adapter(Path(folder))
    try:
        device = str(next(model.parameters()).device)
        loaded = PeftModel.from_pretrained(model, str(folder), torch_device=device, low_cpu_mem_usage=True)
    except UNREADABLE as error:
        raise ModelError(
            f"the adapter in {folder} can't be put on this base: {' '.join(str(error).split())[:500]}"
        ) from error
    for name, tensor in loaded.named_parameters():
        if tensor.is_meta:
            raise ModelError(f"the adapter in {folder} has no {name}, which its configuration asks for")
        if "lora_" in name or "modules_to_save" in name:
            tensor.data = tensor.data.clone()  # else it stays mapped to the file
    for config in loaded.peft_config.values():
        config.base_model_name_or_path = None
    return loaded


def check_adapter(folder: Path) -> None:
    """Raise `ModelError` unless a folder has a LoRA that PEFT can be given: nothing in it runs on and on, imports
    modules, or copies layers."""
    for name, why in (("adapter_config.json", ""), ("adapter_model.safetensors", " (pickled adapters are not read)")):
        if not (folder / name).exists():
            raise ModelError(f"{folder} is no PEFT adapter: {name} is not in it{why}")
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name} is not a regular file")
    file = folder / "adapter_config.json"
    config = read_config(file)
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{file}: peft_type is {shown(config.get('peft_type'))}; only LORA is read")
    for name in ("layer_replication", "megatron_config"):
        if config.get(name):
            raise ModelError(f"{file}: {name} is not supported")
    ranks = config.get("rank_pattern") or {}
    for rank in (config.get("r", 8), *(ranks.values() if isinstance(ranks, dict) else ())):
        if type(rank) is not int or not 1 <= rank <= MOST_RANK:
            raise ModelError(f"{file}: the rank must be a whole number from 1 to {MOST_RANK:,}, not {shown(rank)}")
    for pattern in _patterns(config):
        if not tame(pattern):
            raise ModelError(f"{file}: the pattern {shown(pattern)} could take for ever; list the modules instead")


def _patterns(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the regular expressions in PEFT's configuration."""
    for name in _PATTERNED:
        value = config.get(name)
        entries = [value] if isinstance(value, str) else value if isinstance(value, list | dict) else ()
        yield from (entry for entry in entries if isinstance(entry, str))


def tame(pattern: str) -> bool:
    """Return True if matching a regular expression takes no long time: few repeats, and only of single characters."""
    if len(pattern) > 500:
        return False
    try:
        tree = re._parser.parse(pattern)  # type: ignore[attr-defined]
    except (re.error, RecursionError, OverflowError):
        return False
    stack, repeats, branches = [tree], 0, 0
    while stack:
        for operation, argument in stack.pop():
            kind = str(operation)
            if kind.endswith("REPEAT"):
                repeats += 1
                body = argument[2]
                if len(body) != 1 or str(body[0][0]) not in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
                    return False
            elif kind == "BRANCH":
                branches += 1
                stack += argument[1]
            elif kind in ("SUBPATTERN", "ASSERT", "ASSERT_NOT", "ATOMIC_GROUP"):
                stack.append(argument if kind == "ATOMIC_GROUP" else argument[-1])
            elif kind in ("GROUPREF", "GROUPREF_EXISTS"):
                return False
    return repeats <= MOST_REPEATS and branches <= MOST_REPEATS


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
    if not installed("peft"):
        raise missing("peft", "for a LoRA")
