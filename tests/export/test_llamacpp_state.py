"""llama.cpp's files, byte by byte, read back by a reader of their own."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.errors import ExportError
from foreword.export.llamacpp_state import VERSIONS, interleaved, state


class Reader:
    """Reads llama.cpp's file as its `state_read` does; written apart from the writer."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> tuple[Any, ...]:
        size = struct.calcsize("<" + form)
        found = struct.unpack_from("<" + form, self.data, self.at)
        self.at += size
        return found

    def array(self, kind: int, count: int) -> np.ndarray:
        dtype = {0: np.float32, 1: np.float16}[kind]
        found = np.frombuffer(self.data, dtype, count, self.at)
        self.at += found.nbytes
        return found

    def cache(self, version: int) -> tuple[list[int], list[np.ndarray], list[np.ndarray]]:
        """Positions, keys and values `[cells, heads · width]` of each layer."""
        streams, cells = self.take("II")
        assert streams == 1
        headers = [self.take("iIi") for _ in range(cells)]
        assert all(header[1:] == (1, 0) for header in headers)
        transposed, layers = self.take("II")
        if version >= 4:
            assert self.take("II") == (0, 0)
        keys = []
        for _ in range(layers):
            kind, size = self.take("iQ")
            keys.append(self.array(kind, cells * size // (4, 2)[kind]).reshape(cells, -1))
        values = []
        for _ in range(layers):
            if transposed:
                kind, element, width = self.take("iII")
                assert element == (4, 2)[kind]
                values.append(self.array(kind, cells * width).reshape(width, cells).T)
            else:
                kind, size = self.take("iQ")
                values.append(self.array(kind, cells * size // (4, 2)[kind]).reshape(cells, -1))
        return [header[0] for header in headers], keys, values


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=2),
    st.integers(1, 5),
    st.sampled_from(VERSIONS),
    st.sampled_from(["f32", "f16"]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_what_is_written_is_read(shapes, cells, version, dtype, flash, seed) -> None:
    random = np.random.default_rng(seed)
    caches: Any = [
        [tuple(random.standard_normal((heads, cells, 2 * half), np.float32) for _ in "kv") for _ in range(layers)]
        for layers, heads, half in shapes
    ]
    tokens = random.integers(0, 2**31 - 1, cells).tolist()
    reader = Reader(state(tokens, caches, version, dtype, flash))
    assert reader.take("III") == (0x67677371, version, cells)
    assert list(reader.take(f"{cells}i")) == tokens
    for layers in caches:
        positions, keys, values = reader.cache(version)
        assert positions == list(range(cells))
        assert len(keys) == len(values) == len(layers)
        for (key, value), key_rows, value_rows in zip(layers, keys, values, strict=True):
            for part, rows in ((key, key_rows), (value, value_rows)):
                for head in range(part.shape[0]):
                    width = part.shape[2]
                    expected = part[head].astype(rows.dtype)
                    assert (rows[:, head * width : (head + 1) * width] == expected).all()
    assert reader.at == len(reader.data)


def test_interleaved_channels() -> None:
    key = np.arange(8, dtype=np.float32).reshape(1, 1, 8)
    assert interleaved(key)[0, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_a_number_that_f16_cannot_hold_is_refused() -> None:
    large = np.full((1, 1, 2), 70_000, np.float32)
    assert state([1], [[(large, large)]], 2, "f32")
    with pytest.raises(ExportError, match="larger than f16 can hold"):
        state([1], [[(large, large)]], 2, "f16")
