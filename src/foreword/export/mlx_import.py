"""Import what mlx-lm 0.32 and newer saved as a prompt cache: the keys and values of a text become a prefix.

Older files (0.31.3 and before) hold no lengths, and mlx-lm 0.32 can't read them either; they are refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from foreword.base import Base
from foreword.errors import ImportFormatError, PrefixError, PrefixMismatchError
from foreword.export.base import Importer
from foreword.export.mlx import PLAIN
from foreword.files import Unreadable
from foreword.plain import shown
from foreword.prefix import Prefix
from foreword.tensorfiles import read_tensor_file


@dataclass(frozen=True)
class _Saved:
    """file: of the cache. metadata: as mlx-lm wrote it. old: written by 0.31.3 or before."""

    file: Path
    metadata: Mapping[str, str]

    @property
    def old(self) -> bool:
        return "2.0" in self.metadata and self.metadata["2.0"] != ""

    def classes(self) -> list[str]:
        """Return the class of each layer's cache. Raises `ImportFormatError`."""
        named = {name[2:]: kind for name, kind in self.metadata.items() if name.startswith("1.")}
        if not named or sorted(named) != sorted(map(str, range(len(named)))):
            raise ImportFormatError(f"{self.file} doesn't say which classes mlx-lm's caches are of; save it again")
        return [named[str(layer)] for layer in range(len(named))]


class MlxImporter(Importer):
    name = "mlx"
    summary = "a prompt cache of mlx-lm 0.32 and newer"

    def recognises(self, folder: Path) -> bool:
        return _find(folder) is not None

    def base_name(self, folder: Path) -> str | None:
        return _found(folder).metadata.get("0.model") or None

    def read(self, folder: Path, base: Base) -> Prefix:
        saved = _found(folder)
        kind = base.model.config.get_text_config().model_type
        if kind not in PLAIN:
            raise ImportFormatError(f"mlx-lm's keys of {kind} were not tried; known are {', '.join(PLAIN)}")
        keys, values = _states(saved)
        try:
            prefix = base.prefix_from_kv(keys, values)
        except PrefixMismatchError:
            raise
        except PrefixError as error:
            raise ImportFormatError(f"{saved.file}: {error}") from error
        return prefix.with_record("mlx", _record(saved))


def _find(folder: Path) -> _Saved | None:
    """Return the first file in `folder` that looks like mlx-lm's; None if there is none."""
    try:
        files = sorted(file for file in folder.glob("*.safetensors") if file.is_file())  # a pipe would be waited for
    except OSError:
        return None
    for file in files:
        with suppress(OSError, SafetensorError), safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            if "2.0" in metadata and any(name.startswith(("0.", "1.")) for name in metadata):
                return _Saved(file, metadata)
    return None


def _found(folder: Path) -> _Saved:
    if (saved := _find(folder)) is None:
        raise ImportFormatError(f"{folder} has no prompt cache of mlx-lm (a .safetensors file with its metadata)")
    if saved.old:
        raise ImportFormatError(
            f"{saved.file} was written by mlx-lm 0.31.3 or older, in a format that newer ones don't read; "
            "make the cache again with mlx-lm 0.32"
        )
    return saved


def _states(saved: _Saved) -> tuple[list[Tensor], list[Tensor]]:
    """Return keys and values `[num_kv_heads, length, head_dim]` of each layer. Raises `ImportFormatError`."""
    classes = saved.classes()
    if others := sorted(set(classes) - {"KVCache"}):
        raise ImportFormatError(
            f"{saved.file} holds caches of {', '.join(map(shown, others))}; only KVCache holds every key as it is"
        )
    try:
        tensors = read_tensor_file(saved.file).tensors
    except Unreadable as error:
        raise ImportFormatError(f"{saved.file} {error}") from error
    layers = [_layer(saved.file, tensors, layer) for layer in range(len(classes))]
    return [key for key, _ in layers], [value for _, value in layers]


def _layer(file: Path, tensors: Mapping[str, Tensor], layer: int) -> tuple[Tensor, Tensor]:
    try:
        key, value, length = (tensors[f"{layer}.{part}"] for part in range(3))
    except KeyError as error:
        raise ImportFormatError(f"{file} lacks the tensor {error.args[0]}") from error
    known = int(length) if length.numel() == 1 and not length.is_floating_point() else -1
    for states in (key, value):
        if states.dim() != 4 or states.shape[0] != 1 or not states.is_floating_point():
            raise ImportFormatError(
                f"{file}: layer {layer} holds {tuple(states.shape)} {states.dtype}; a prefix needs one row "
                "[1, heads, length, width] of floating point"
            )
        if not 0 < known <= states.shape[2]:
            raise ImportFormatError(
                f"{file}: layer {layer} has {states.shape[2]} tokens, but tells a length of {known}"
            )
    return key[0, :, :known].clone(), value[0, :, :known].clone()


def _record(saved: _Saved) -> dict[str, str]:
    """Return the template that Foreword's own exporter has written, if it has."""
    with suppress(KeyError, ValueError):
        template = json.loads(saved.metadata["0.foreword_template"])
        return {"template": template} if isinstance(template, str) else {}
    return {}
