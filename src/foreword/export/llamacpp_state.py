"""llama.cpp's files of keys and values: of one sequence ("GGSQ"), which `llama-server` restores into a slot, and of a
session ("GGSN"), which `llama-completion --prompt-cache` goes on from.

Little-endian. A head (magic, version, token ids), then a part for each of llama.cpp's caches: one, or with sliding
windows two, that of the layers with full attention first. A part has its cells (position, sequence) and then, layer by
layer, rows of keys `[cells, heads · width]`, and in the same way the values, or their transposes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foreword.errors import ExportError

MAGIC, SESSION_MAGIC = 0x67677371, 0x6767736E
VERSIONS = (2, 3, 4)
SESSIONS = {2: 9, 3: 10, 4: 11}  # version of a sequence → of a session with the same parts
TYPES = {"f32": (0, "<f4", 4), "f16": (1, "<f2", 2)}  # ggml's number, numpy's name, bytes
Array = NDArray[np.float32]
Layer = tuple[Array, Array]  # keys and values `[heads, cells, width]`


def interleaved(key: Array) -> Array:
    """Return keys `[…, d]` with channel i beside channel i + d/2, as in llama.cpp's files of Llama."""
    halves = key.reshape(*key.shape[:-1], 2, key.shape[-1] // 2)
    return halves.swapaxes(-1, -2).reshape(key.shape)


def state(
    tokens: Sequence[int], caches: Sequence[Sequence[Layer]], version: int, dtype: str, flash: bool = True
) -> bytes:
    """Return the file. tokens: one id for each cell. caches: the layers of each of llama.cpp's caches, in order.

    dtype: f32 or f16, as the server's cache. flash: whether the server uses flash attention; without it, it keeps
    values transposed. Raises `ExportError` for a number that the type can't hold.
    """
    return _head(MAGIC, version, tokens) + _parts(len(tokens), caches, version, dtype, flash)


def session(
    tokens: Sequence[int], caches: Sequence[Sequence[Layer]], version: int, dtype: str, architecture: str
) -> bytes:
    """Return a session's file; see `state`. version: that of the sequence's parts. architecture: llama.cpp's name.

    It names one token more than there are cells: llama.cpp computes a session's last token anew.
    """
    head = _head(SESSION_MAGIC, SESSIONS[version], [*tokens, tokens[0]])
    named = struct.pack("<I", len(architecture)) + architecture.encode()
    return head + named + _parts(len(tokens), caches, version, dtype, flash=True)


def _head(magic: int, version: int, tokens: Sequence[int]) -> bytes:
    return struct.pack("<III", magic, version, len(tokens)) + np.asarray(tokens, "<i4").tobytes()


def _parts(cells: int, caches: Sequence[Sequence[Layer]], version: int, dtype: str, flash: bool) -> bytes:
    return b"".join(part for layers in caches for part in _cache(cells, layers, version, dtype, flash))


def _cache(cells: int, layers: Sequence[Layer], version: int, dtype: str, flash: bool) -> Iterator[bytes]:
    yield struct.pack("<II", 1, cells)  # one stream
    yield b"".join(struct.pack("<iIi", position, 1, 0) for position in range(cells))
    yield struct.pack("<II", int(not flash), len(layers))
    if version >= 4:
        yield struct.pack("<II", 0, 0)  # neither keys nor values are rotated, as those of quantised caches are
    number, _, size = TYPES[dtype]
    for key, _ in layers:
        yield struct.pack("<iQ", number, size * key.shape[0] * key.shape[2]) + _rows(key, dtype).tobytes()
    for _, value in layers:
        width, rows = value.shape[0] * value.shape[2], _rows(value, dtype)
        if flash:
            yield struct.pack("<iQ", number, size * width) + rows.tobytes()
        else:
            yield struct.pack("<iII", number, size, width) + rows.T.tobytes()


def _rows(states: Array, dtype: str) -> NDArray[Any]:
    """Return `[heads, cells, width]` as `[cells, heads · width]` in `dtype`."""
    heads, cells, width = states.shape
    with np.errstate(over="ignore"):
        rows: NDArray[Any] = states.transpose(1, 0, 2).reshape(cells, heads * width).astype(TYPES[dtype][1])
    if not np.isfinite(rows).all():
        raise ExportError(f"a key or value is larger than {dtype} can hold, the type of llama.cpp's cache")
    return rows
