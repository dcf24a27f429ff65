"""Models with several parts: text with pictures takes a prefix in its text part; two towers of one kind are refused."""

from __future__ import annotations

import pytest
import torch

import foreword
from foreword.base import Base
from foreword.errors import UnsupportedModelError
from foreword.prefix import Prefix
from parity_helpers import CONTROL, TOLERANCE, generate, make_batch, outputs, real, run, run_expected
from tiny import byte_tokenizer, relative, tiny_base, trained_like
from training_helpers import settings, write_rows

VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TOKENS = {"mm_tokens_per_image": 4, "image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7}


@pytest.fixture
def base() -> Base:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = tiny_base("gemma3_text").model.config.to_dict()
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=VISION, **TOKENS))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(10.0)
    return Base(model, byte_tokenizer(), name="composite")


def test_text_rows(base) -> None:
    assert [slot.module for slot in base.slots] == [f"model.language_model.layers.{i}.self_attn" for i in range(3)]
    prefix, batch = trained_like(base, 7), make_batch(base, [11, 4, 8])
    expected, values = run_expected(base, prefix, batch), run(base, prefix, batch)
    assert relative(real(values, batch), real(expected, batch)) < TOLERANCE
    mixed = [prefix, None, prefix]
    assert torch.equal(generate(base, mixed, batch), generate(base, mixed, batch, "reference"))


def test_left_padding_changes_nothing(base) -> None:
    prefix, batch = trained_like(base, 7), make_batch(base, [12, 6], "left")
    alone = {name: value[1:, 6:] for name, value in batch.items()}
    assert relative(run(base, prefix, batch)[1, 6:], run(base, prefix, alone)[0]) < TOLERANCE


def test_a_picture_goes_through_its_own_attention(base) -> None:
    prefix = trained_like(base, 7)
    ids = torch.tensor([[20, 6, 5, 5, 5, 5, 7, 30, 31]])
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 32, 32), "token_type_ids": (ids == 5).long()}
    with torch.no_grad():
        plain = base.model(**inputs).logits
        with base.attach(prefix):
            attached = base.model(**inputs).logits
        with base.attach(prefix, backend="reference"):
            assert relative(attached, base.model(**inputs).logits) < TOLERANCE
        assert relative(attached, plain) > CONTROL
        assert torch.equal(base.model(**inputs).logits, plain)


def test_trains(base, tmp_path) -> None:
    result = foreword.train(base, settings(write_rows(tmp_path), steps=2, method="mlp"))
    assert result.steps == 2


def test_offsets_use_the_text_parts_frequencies() -> None:
    """A vision tower may have rotary positions of its own, and stand first."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    text = tiny_base("gemma4_text").model.config.to_dict()
    torch.manual_seed(0)
    config = Gemma4Config(
        text_config=text, vision_config=VISION | {"num_key_value_heads": 2, "head_dim": 16}, audio_config=None
    )
    base = Base(Gemma4ForConditionalGeneration(config), byte_tokenizer(), name="gemma4")
    assert sum(name.endswith("rotary_emb") for name, _ in base.model.named_modules()) > 1
    prefix, batch = trained_like(base, 7, noise=3.0), make_batch(base, [11, 11])
    batch["mm_token_type_ids"] = torch.zeros_like(batch["input_ids"])
    expected = run(base, prefix, batch)
    assert relative(run(base, prefix.with_offset(0, base), batch), expected) < TOLERANCE
    assert relative(run(base, Prefix(prefix.slots, 0, prefix.base), batch), expected) > 10 * TOLERANCE


def test_two_towers_are_refused() -> None:
    from transformers import (
        BertConfig,
        CLIPConfig,
        CLIPModel,
        EncoderDecoderConfig,
        EncoderDecoderModel,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
    )  # fmt: skip

    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertConfig(vocab_size=50, **small)
    pair = EncoderDecoderModel(
        EncoderDecoderConfig.from_encoder_decoder_configs(bert, BertConfig(vocab_size=50, **small))
    )
    seen = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        ViTConfig(image_size=32, patch_size=8, **small), BertConfig(vocab_size=50, **small)
    )
    clip = CLIPModel(CLIPConfig(text_config=small | {"vocab_size": 50}, vision_config=VISION))
    for model in (pair, VisionEncoderDecoderModel(seen), clip):
        with pytest.raises(UnsupportedModelError):
            Base(model)


def test_offloaded_weights() -> None:
    """Accelerate keeps them on meta until a layer runs."""
    from accelerate import cpu_offload

    base = tiny_base("llama")
    prefix, batch = trained_like(base, 5), make_batch(base, [9, 5])
    expected = run(base, prefix, batch)
    cpu_offload(base.model, execution_device=torch.device("cpu"))
    assert next(base.model.parameters()).device.type == "meta"
    with base.attach([prefix, prefix]):
        assert relative(outputs(base.model, batch), expected) < TOLERANCE


def test_a_prompt_is_inserted_though_the_outer_model_looks_embeddings_up(base) -> None:
    prompt = Prefix({}, 0, base.fingerprint, "embedding", {"embeddings": 10 * torch.randn(4, base.embedding_width)})
    rows = base.inputs([[10, 11]], prompt)
    plain = base.model(input_ids=torch.tensor([[10, 11]]), use_cache=False).logits
    with base.attach(prompt):
        first = base.model(**rows.tensors, use_cache=False).logits
    with base.attach(None):
        base.switch(prompt)  # the tables are watched from here on
        second = base.model(**rows.tensors, use_cache=False).logits
    assert torch.equal(first, second)
    assert relative(first[:, -2:], plain) > CONTROL
