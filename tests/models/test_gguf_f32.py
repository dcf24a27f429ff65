"""A GGUF file in float32 has the weights that the quantised one stands for, and everything else as it was."""

from __future__ import annotations

import numpy as np
import pytest

from foreword.errors import ModelError, StorageError
from foreword.models.gguf_f32 import write_f32

gguf = pytest.importorskip("gguf")


def made(path, weights):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_string("general.name", "ä name")
    writer.add_token_list(["a", "b"])
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("w", gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.add_tensor("norm", weights[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_weights_and_metadata(tmp_path) -> None:
    weights = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    made(tmp_path / "q8.gguf", weights)
    write_f32(tmp_path / "q8.gguf", tmp_path / "f32.gguf")
    before, after = gguf.GGUFReader(tmp_path / "q8.gguf"), gguf.GGUFReader(tmp_path / "f32.gguf")
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert (old.name, list(old.shape)) == (new.name, list(new.shape))
        assert new.tensor_type == gguf.GGMLQuantizationType.F32
        assert (new.data == gguf.quants.dequantize(old.data, old.tensor_type)).all()
    assert np.abs(after.tensors[0].data - weights).max() < 0.05
    for name in ("llama.block_count", "general.name", "tokenizer.ggml.tokens", "general.architecture"):
        assert before.fields[name].contents() == after.fields[name].contents()
    assert {path.name for path in tmp_path.iterdir()} == {"q8.gguf", "f32.gguf"}


def test_what_cannot_be_read_or_written(tmp_path) -> None:
    (tmp_path / "junk.gguf").write_bytes(b"junk" * 10)
    for name in ("junk.gguf", "nothing.gguf"):
        with pytest.raises(ModelError, match=f"{name} is no GGUF file that can be read"):
            write_f32(tmp_path / name, tmp_path / "out.gguf")
    made(tmp_path / "q8.gguf", np.zeros((2, 32), np.float32))
    with pytest.raises(StorageError, match="can't be written"):
        write_f32(tmp_path / "q8.gguf", tmp_path / "no" / "out.gguf")
