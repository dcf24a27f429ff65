"""Damaged and foreign PEFT adapters give Foreword's own errors, which name file and field."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from foreword.errors import ForewordError, ImportFormatError, PrefixMismatchError
from foreword.export import export_prefix, import_prefix
from foreword.export.importing import importer_of
from foreword.export.peft_import import PeftAdapter
from foreword.prefix import Prefix
from tiny import tiny_base, trained_like

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
FIELDS = ("peft_type", "task_type", "num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim",
          "num_transformer_submodules", "base_model_name_or_path", "inference_mode")  # fmt: skip


@pytest.fixture(scope="module")
def base():
    return tiny_base()


@pytest.fixture
def folder(base, tmp_path):
    export_prefix(trained_like(base, 5), "peft", tmp_path / "adapter", base)
    return tmp_path / "adapter"


def changed(folder, **fields: Any) -> None:
    told = json.loads((folder / CONFIG).read_text()) | fields
    (folder / CONFIG).write_text(json.dumps({name: value for name, value in told.items() if value != "gone"}))


def refused(folder, base, reason: str, kind: type[Exception] = ImportFormatError) -> None:
    with pytest.raises(kind, match=reason) as caught:
        import_prefix(folder, base, "peft")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"peft_type": "LORA"}, "peft_type is 'LORA': it changes weights; put it on the base with --lora FOLDER"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3': it changes weights, or is not known here; read are PREFIX_TUNING"),
        ({"peft_type": "MULTITASK_PROMPT_TUNING"}, "depends on the task of each row"),
        ({"peft_type": "CPT"}, "bound to the labels"),
        ({"peft_type": "ADAPTION_PROMPT"}, "gates add to attention"),
        ({"peft_type": "gone"}, "peft_type is None"),
        ({"peft_type": ["PREFIX_TUNING"]}, r"peft_type is \['PREFIX_TUNING'\]"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS': its head was trained with it"),
        ({"task_type": 3}, "task_type is 3"),
        ({"num_virtual_tokens": "gone"}, "num_virtual_tokens is missing"),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens must be a whole number from 1 to 2,147,483,647, not 0"),
        ({"num_virtual_tokens": True}, "num_virtual_tokens must be a whole number"),
        ({"num_virtual_tokens": 5.0}, "num_virtual_tokens must be a whole number"),
        ({"num_virtual_tokens": 10**30}, "num_virtual_tokens must be a whole number .* not a number of 31 digits"),
        ({"num_virtual_tokens": 6}, r"prompt_embeddings is float32 \[5, 192\], but must be .* \[6, 192\]"),
        ({"token_dim": "32"}, "token_dim must be a whole number"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules is 2; a decoder needs 1"),
        ({"num_transformer_submodules": 3}, "num_transformer_submodules must be 1 or 2, not 3"),
    ],
)
def test_settings_that_are_no_prefix(folder, base, fields, reason) -> None:
    changed(folder, **fields)
    refused(folder, base, reason)
    refused(folder, base, CONFIG if fields != {"num_virtual_tokens": 6} else TENSORS)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"num_layers": 12}, f"{CONFIG}: num_layers is 12; tiny-llama needs 3"),
        ({"num_attention_heads": 4}, "num_attention_heads is 4; tiny-llama needs 2"),
        ({"token_dim": 64}, "token_dim is 64; tiny-llama needs 32"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task_type is SEQ_2_SEQ_LM, tiny-llama needs CAUSAL_LM"),
        ({"num_virtual_tokens": 2**30}, "num_virtual_tokens is 1,073,741,824; tiny-llama has 256 positions"),
        ({"peft_type": "PROMPT_TUNING"}, "token_dim is 32; tiny-llama needs 64"),
    ],
)
def test_settings_of_another_base(folder, base, fields, reason) -> None:
    changed(folder, **fields)
    refused(folder, base, reason, PrefixMismatchError)


def test_sizes_that_are_not_told_are_the_bases(folder, base) -> None:
    expected = import_prefix(folder, base).digest
    names = ("num_layers", "num_attention_heads", "token_dim", "num_transformer_submodules", "task_type")
    changed(folder, **dict.fromkeys(names))
    assert import_prefix(folder, base).digest == expected


def test_bases_that_peft_serves_in_part_or_otherwise(folder) -> None:
    for kind, reason, error in (
        ("bert", "is an encoder", ImportFormatError),
        ("gemma4_text", "act.* on a part of them", ImportFormatError),
        ("deepseek_v3", "differ in their keys and values", ImportFormatError),
        ("falcon_h1", "not all have some", ImportFormatError),
        ("lfm2", "not all have some", ImportFormatError),
        ("t5", "task_type is CAUSAL_LM, tiny-t5 needs SEQ_2_SEQ_LM", PrefixMismatchError),
    ):
        refused(folder, tiny_base(kind), reason, error)
    windowed = tiny_base("mistral", sliding_window=5)
    refused(folder, windowed, "is 5, of which PEFT drops what exceeds the window of 5 in tiny-mistral")
    assert import_prefix(folder, tiny_base("mistral", sliding_window=6)).length == 5
    changed(folder, task_type=None, num_transformer_submodules=2)
    for kind in ("t5", "bart"):
        base = tiny_base(kind)
        refused(folder, base, "num_attention_heads is 2; tiny-.* needs 4", PrefixMismatchError)
        changed(folder, num_attention_heads=4, token_dim=64)
        refused(folder, base, r"prompt_embeddings is float32 \[5, 192\], but must be .* \[5, 384\]")
        for layers in (1, 2, 7, 2**31 - 1):  # its decoder has 3
            changed(folder, num_layers=layers)
            refused(folder, base, "num_layers is .* has 3 layers", PrefixMismatchError)
        changed(folder, num_layers=3, num_transformer_submodules=1)
        refused(folder, base, "num_transformer_submodules is 1; an encoder–decoder needs 2")
        changed(folder, num_transformer_submodules=2, num_attention_heads=2)
    refused(folder, tiny_base("whisper"), "tiny-whisper takes none from outside")


def test_prompts_for_bases_that_take_none(folder) -> None:
    changed(folder, peft_type="PROMPT_TUNING", token_dim=64)
    save_file({"prompt_embeddings": torch.ones(5, 64)}, folder / TENSORS)
    refused(folder, tiny_base("gemma4_text"), "input embeddings per layer too")
    changed(folder, task_type="SEQ_2_SEQ_LM")
    refused(folder, tiny_base("whisper"), "takes none")


def test_prompts_with_numbers_that_are_none(folder, base) -> None:
    changed(folder, peft_type="PROMPT_TUNING", token_dim=64)
    table = torch.ones(5, 64)
    table[2, 3] = float("inf")
    save_file({"prompt_embeddings": table}, folder / TENSORS)
    refused(folder, base, "prompt_embeddings holds NaN or infinity")
    save_file({"prompt_embeddings": torch.full((5, 64), 3e38)}, folder / TENSORS)
    half = tiny_base("llama", dtype=torch.float16)
    refused(folder, half, "computed by tiny-llama from it, decoder.* holds NaN or infinity")


def test_tensors_that_are_damaged(folder, base) -> None:
    data, table = (folder / TENSORS).read_bytes(), load_file(folder / TENSORS)["prompt_embeddings"]
    for cut in (0, 4, 8, 60, len(data) - 1):
        (folder / TENSORS).write_bytes(data[:cut])
        refused(folder, base, f"{TENSORS} can't be read")
    (folder / TENSORS).write_bytes(struct.pack("<Q", 2**60) + data[8:])
    refused(folder, base, "cut off or too long")
    for tensors, reason in (
        ({"other": table}, "must hold prompt_embeddings and no more, but it holds other"),
        ({"prompt_embeddings": table, "head": table[:1, :4].clone()}, "but it holds head, prompt_embeddings"),
        ({"prompt_embeddings": table.flatten()}, r"is float32 \[960\], but must be .* \[5, 192\]"),
        ({"prompt_embeddings": table.T.contiguous()}, r"\[192, 5\]"),
        ({"prompt_embeddings": table.int()}, "is int32"),
        ({"prompt_embeddings": torch.full_like(table, float("nan"))}, "decoder.0.key holds NaN or infinity"),
        ({}, "but it holds nothing"),
    ):
        save_file(tensors, folder / TENSORS)
        refused(folder, base, reason)
    save_file({"prompt_embeddings": table.double()}, folder / TENSORS)
    refused(folder, base, "is float64")
    save_file({"prompt_embeddings": table, "base_model.lm_head": torch.ones(260, 64)}, folder / TENSORS)
    refused(folder, base, "at most .* are read; .* trained layers can't be part of a prefix")


def test_files_that_are_missing_or_no_files(folder, base) -> None:
    (folder / TENSORS).rename(folder / "away")
    refused(folder, base, f"{TENSORS} is missing")
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04")
    refused(folder, base, "is a pickle, which can run code .* safe_serialization=True")
    os.mkfifo(folder / TENSORS)
    refused(folder, base, "is not a regular file")
    (folder / CONFIG).unlink()
    refused(folder, base, f"{CONFIG} can't be opened")
    with pytest.raises(ImportFormatError, match="in no format that is known here"):
        importer_of(folder)
    refused(folder / "none", base, f"{CONFIG} can't be opened")
    refused(folder / "a\0b", base, f"{CONFIG} can't be opened")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", '{"a": NaN}', "[" * 5000, '{"a": 1, "a": 2}', "\ufeff{}", "\x00"]
)
def test_settings_that_are_no_object(folder, base, text) -> None:
    (folder / CONFIG).write_text(text)
    refused(folder, base, CONFIG)
    assert PeftAdapter().recognises(folder)


def test_what_is_recognised(folder, base) -> None:
    assert isinstance(importer_of(folder), PeftAdapter)
    assert PeftAdapter().base_name(folder) is None or isinstance(PeftAdapter().base_name(folder), str)
    changed(folder, base_model_name_or_path="org/model")
    assert PeftAdapter().base_name(folder) == "org/model"
    changed(folder, base_model_name_or_path=["org/model"])
    with pytest.raises(ImportFormatError, match="base_model_name_or_path must be text or null"):
        PeftAdapter().base_name(folder)
    for other in (folder / "none", folder / CONFIG, folder / "a\0b"):
        assert not PeftAdapter().recognises(other)


def test_a_private_place_is_not_kept(folder, base, tmp_path) -> None:
    changed(folder, base_model_name_or_path="/home/me/secret-model", tokenizer_name_or_path="/home/me/secret")
    import_prefix(folder, base).save(tmp_path / "saved")
    assert "secret" not in (tmp_path / "saved" / "manifest.json").read_text()
    assert str(folder) not in (tmp_path / "saved" / "manifest.json").read_text()


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.sampled_from(["PREFIX_TUNING", "CARTRIDGE", "PROMPT_TUNING", "P_TUNING", "CAUSAL_LM", "SEQ_2_SEQ_LM"])
    | st.sampled_from([1, 2, 3, 5, 32, 64]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6,
)  # fmt: skip


def in_one_line(folder, base) -> bool:
    """Whether an import gives a prefix, or an error of Foreword's own whose text has one line."""
    try:
        return isinstance(import_prefix(folder, base, "peft"), Prefix)
    except ForewordError as error:
        return "\n" not in str(error)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), _VALUES, min_size=1, max_size=4))
def test_any_settings_give_a_prefix_or_an_error_of_our_own(folder, base, fields) -> None:
    before = (folder / CONFIG).read_text()
    try:
        (folder / CONFIG).write_text(json.dumps(json.loads(before) | fields))
        PeftAdapter().recognises(folder)
        assert in_one_line(folder, base)
    finally:
        (folder / CONFIG).write_text(before)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_give_a_prefix_or_an_error_of_our_own(folder, base, data) -> None:
    name = data.draw(st.sampled_from([CONFIG, TENSORS]))
    before = (folder / name).read_bytes()
    mutable = bytearray(before)
    for _ in range(data.draw(st.integers(1, 3))):
        mutable[data.draw(st.integers(0, min(len(before), 400) - 1))] = data.draw(st.integers(0, 255))
    try:
        (folder / name).write_bytes(bytes(mutable))
        assert in_one_line(folder, base)
    finally:
        (folder / name).write_bytes(before)
