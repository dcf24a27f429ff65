"""Offsets per architecture: defaults, limits, conversion, refusals."""

from __future__ import annotations

import pytest
import torch

from foreword.base import Base
from foreword.errors import PositionError, UnsupportedModelError
from foreword.models.slots import find_slots
from foreword.prefix import Prefix
from parity_helpers import CONTROL, TOLERANCE, make_batch, outputs, run
from tiny import (
    ARCHITECTURES,
    CASES,
    DECODERS,
    ENCODERS,
    UNSUPPORTED,
    VARIANTS,
    VISION,
    case_name,
    relative,
    tiny_base,
    tiny_model,
    trained_like,
)  # fmt: skip

FIXED = ("gpt2", "opt", "bloom", "mpt", "llama4_text", "jamba")  # offset can't be changed, or moves nothing
ROTARY = [
    case for case in CASES if case[0] in (*DECODERS, "modernbert") and case[0] not in FIXED and case[1] != "alibi"
]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_default_offset(kind) -> None:
    assert trained_like(tiny_base(kind), 5).position_offset == (5 if kind in DECODERS else 0)


@pytest.mark.parametrize("offset", [0, 3, 40])
@pytest.mark.parametrize("case", ROTARY, ids=case_name)
def test_rotated_keys_do_the_same_at_another_offset(case, offset) -> None:
    base = tiny_base(case[0], **VARIANTS.get(case, {}))
    prefix, batch = trained_like(base, 7), make_batch(base, [20, 20])
    assert prefix.position_offset != offset or case[0] == "modernbert"
    expected = run(base, prefix, batch)
    moved = prefix.with_offset(offset, base)
    assert moved.position_offset == offset
    assert relative(run(base, moved, batch), expected) < TOLERANCE
    if offset != prefix.position_offset:
        unmoved = Prefix(prefix.slots, offset, prefix.base)
        assert relative(run(base, unmoved, batch), expected) > CONTROL
    back = moved.with_offset(prefix.position_offset, base)
    for name, kv in prefix.slots.items():
        assert torch.allclose(back.slots[name].key, kv.key, rtol=1e-4, atol=1e-4)


def test_yarn_and_llama3_scaling_are_static() -> None:
    scaled = [
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 64},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    ]  # fmt: skip
    for parameters in scaled:
        base = tiny_base("llama", rope_parameters=parameters)
        prefix, batch = trained_like(base, 7), make_batch(base, [20])
        expected = run(base, prefix, batch)
        assert relative(run(base, prefix.with_offset(0, base), batch), expected) < TOLERANCE
        assert relative(run(base, Prefix(prefix.slots, 0, prefix.base), batch), expected) > CONTROL


def test_what_depends_on_length_is_refused() -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    longrope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
        "factor": 4.0, "original_max_position_embeddings": 64,
    }  # fmt: skip
    for parameters, kind in ((dynamic, "dynamic"), (longrope, "longrope")):
        base = tiny_base("llama", rope_parameters=parameters)
        with pytest.raises(PositionError, match=kind):
            trained_like(base, 5).with_offset(0, base)
    base = tiny_base("llama4_text")
    with pytest.raises(PositionError, match="attn_temperature_tuning"):
        trained_like(base, 5).with_offset(0, base)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bloom", "mpt", "bert", "t5"])
def test_positions_that_are_not_rotary_keep_their_offset(kind) -> None:
    base = tiny_base(kind)
    prefix = trained_like(base, 5)
    with pytest.raises(PositionError, match="rotary ones only"):
        prefix.with_offset(prefix.position_offset + 1, base)
    assert prefix.with_offset(prefix.position_offset, base) is prefix


@pytest.mark.parametrize("kind", ["whisper", *VISION, "roberta", "clip_text_model"])
def test_where_positions_come_from_inside_the_offset_is_0(kind) -> None:
    base = tiny_base(kind)
    prefix = trained_like(base, 5)
    with pytest.raises(PositionError, match="offset 0"), base.attach(Prefix(prefix.slots, 5, prefix.base)):
        pass


@pytest.mark.parametrize("case", [("bloom", ""), ("mpt", ""), ("falcon", "alibi")], ids=case_name)
def test_alibi_counts_the_prefix(case) -> None:
    base = tiny_base(case[0], **VARIANTS.get(case, {}))
    prefix = trained_like(base, 5)
    with pytest.raises(PositionError, match="prefix's length 5"), base.attach(Prefix(prefix.slots, 0, prefix.base)):
        pass


def test_bert_uses_all_its_512_positions() -> None:
    """A prefix takes none of them; one that was trained with an offset does."""
    base = tiny_base("bert", max_position_embeddings=512)
    prefix = trained_like(base, 32)
    with torch.no_grad():
        assert run(base, prefix, make_batch(base, [512])).shape[1] == 512
        with pytest.raises(PositionError, match="0 to 511"):
            run(base, prefix, make_batch(base, [513]))
        shifted = Prefix(prefix.slots, 32, prefix.base)
        run(base, shifted, make_batch(base, [480]))
        with pytest.raises(PositionError, match=r"position 512 .*offset 32 included.*0 to 511"):
            run(base, shifted, make_batch(base, [481]))


def test_bert_with_an_offset_reads_later_positions() -> None:
    base = tiny_base("bert")
    prefix, batch = trained_like(base, 5), make_batch(base, [20, 20])
    later = torch.arange(5, 25)[None]
    expected = run(base, prefix, batch, position_ids=later)
    assert relative(run(base, Prefix(prefix.slots, 5, prefix.base), batch), expected) < TOLERANCE
    assert relative(run(base, prefix, batch), expected) > CONTROL


def test_gpt2_past_its_1024_positions() -> None:
    base = tiny_base("gpt2", max_position_embeddings=1024)
    prefix = trained_like(base, 24)
    with torch.no_grad():
        run(base, prefix, make_batch(base, [1000]))
        with pytest.raises(PositionError, match=r"position 1024 .*offset 24 included.*0 to 1023"):
            run(base, prefix, make_batch(base, [1001]))
        padded = make_batch(base, [1001, 5], "left")
        padded["attention_mask"][0, :1] = 0  # 1,000 real tokens in a row of 1,001
        run(base, prefix, padded)


@pytest.mark.parametrize(
    ("kind", "limit"), [("mpt", 256), ("gptj", 256), ("codegen", 256), ("roberta", 253), ("bart", 256)]
)
def test_tables_that_end(kind, limit) -> None:
    base = tiny_base(kind)
    prefix = trained_like(base, 6)
    room = limit - prefix.position_offset
    with torch.no_grad():
        outputs_of = make_batch(base, [room])
        run(base, prefix, outputs_of)
        with pytest.raises(PositionError, match=f"0 to {limit - 1}"):
            run(base, prefix, make_batch(base, [room + 1]))


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_models_without_a_place_for_a_prefix(kind, matrix) -> None:
    model = tiny_model(kind)
    with pytest.raises(UnsupportedModelError, match=kind) as raised:
        Base(model)
    matrix(kind, type(raised.value).__name__, row="refused")


def test_a_bert_that_runs_as_a_decoder_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="is_decoder"):
        find_slots(tiny_model("bert", is_decoder=True))


def test_attention_that_is_not_dispatched_is_refused(monkeypatch) -> None:
    """A version of Transformers whose T5 has attention code of its own: a prefix would silently do nothing."""
    import transformers.models.t5.modeling_t5 as home

    model = tiny_model("t5")
    monkeypatch.delattr(home, "ALL_ATTENTION_FUNCTIONS")
    with pytest.raises(UnsupportedModelError, match="update Transformers"):
        Base(model)


def test_slots_name_the_layers_that_take_none() -> None:
    slots = tiny_base("jamba").model_slots
    assert [slot.name for slot in slots.slots] == ["decoder.1", "decoder.3"]
    assert slots.without == (0, 2)
    assert tiny_base("llama").model_slots.without == ()


def test_layers_that_share_keys_read_their_owners_slot() -> None:
    slots = tiny_base("gemma4_text").model_slots
    assert [slot.name for slot in slots.slots] == ["decoder.0", "decoder.1"]
    assert list(slots.readers.values()) == [("decoder.0",), ("decoder.1",), ("decoder.0",), ("decoder.1",)]
    assert [(slot.num_kv_heads, slot.key_dim) for slot in slots.slots] == [(2, 16), (1, 32)]


def test_one_shared_layer_has_many_slots() -> None:
    slots = tiny_base("albert").model_slots
    assert [slot.name for slot in slots.slots] == [f"encoder.{layer}" for layer in range(4)]
    assert list(slots.readers.values()) == [("encoder.0", "encoder.1"), ("encoder.2", "encoder.3")]


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind not in ENCODERS])
def test_slot_shapes_are_what_attention_sees(kind) -> None:
    base = tiny_base(kind)
    for slot in base.slots:
        kv = trained_like(base, 4).slots[slot.name]
        assert (kv.key.shape[0], kv.key.shape[2], kv.value.shape[2]) == (
            slot.num_kv_heads,
            slot.key_dim,
            slot.value_dim,
        )
    assert outputs(base.model, make_batch(base, [4])).isfinite().all()
