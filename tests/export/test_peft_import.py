"""What PEFT trained and saved gives PEFT's logits here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from foreword.export import export_prefix, import_prefix
from foreword.prefix import Prefix
from peft_helpers import CONTROL, LENGTH, TOLERANCE, attached, batch_of, difference, logits_of, task_of, trained_adapter
from tiny import VARIANTS, random_batch, tiny_base, tiny_model

peft = pytest.importorskip("peft", minversion="0.21")  # it has cartridges, and Gemma 3 without an error

CACHED = ["llama", "qwen3", "gpt2", "gemma3_text", "mistral", "gpt_oss", "bloom", "falcon", "mpt"]
WINDOW = VARIANTS["mistral", "window8"]


def check(kind, config, folder, batch, **changes) -> Prefix:
    """Train and save an adapter, import it, and compare; without it, and at another offset, the logits are others."""
    model = trained_adapter(kind, config, folder, **changes)
    base = tiny_base(kind, **changes)
    prefix = import_prefix(folder, base)
    expected = logits_of(model, batch)
    found = attached(base, prefix, batch)
    print(
        f"{kind} {prefix.method} {prefix.merge}: {difference(found, expected):.1e}, control "
        f"{difference(logits_of(base.model, batch), expected):.2g}"
    )
    assert difference(found, expected) < TOLERANCE
    assert difference(logits_of(base.model, batch), expected) > CONTROL
    assert prefix.length == LENGTH
    if prefix.position_offset and base.model_slots.explicit_positions:
        assert difference(attached(base, replace(prefix, position_offset=0), batch), expected) > CONTROL
    return prefix


@pytest.mark.parametrize("kind", CACHED)
def test_prefix_tuning(kind, tmp_path) -> None:
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH)
    if kind in ("falcon", "mpt"):  # PEFT's own guesses are wrong there
        config = peft.PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=LENGTH, num_layers=3,
            num_attention_heads=1 if kind == "falcon" else 4, token_dim=16 if kind == "falcon" else 64,
        )  # fmt: skip
    prefix = check(kind, config, tmp_path, batch_of(kind))
    assert prefix.method == "prefix_tuning"
    assert prefix.record == {"imported": {"from": "peft", "method": "prefix_tuning", "num_virtual_tokens": LENGTH}}


def test_prefix_tuning_through_a_network(tmp_path) -> None:
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=LENGTH, prefix_projection=True, encoder_hidden_size=48
    )
    check("llama", config, tmp_path, batch_of("llama"))


@pytest.mark.parametrize("frozen", [0, 1])
def test_cartridge(frozen, tmp_path) -> None:
    config = peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH, num_frozen_tokens=frozen)
    assert check("qwen3", config, tmp_path, batch_of("qwen3")).method == "cartridge"


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("make", [peft.PromptTuningConfig, peft.PromptEncoderConfig])
def test_prompts_of_full_attention_become_keys_and_values(kind, make, tmp_path) -> None:
    config = make(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH)
    prefix = check(kind, config, tmp_path, batch_of(kind))
    assert prefix.merge == "softmax"
    assert prefix.extras["embeddings"].shape == (LENGTH, 64)


@pytest.mark.parametrize("make", [peft.PromptTuningConfig, peft.PromptEncoderConfig])
@pytest.mark.parametrize(("kind", "changes"), [("mistral", WINDOW), ("gemma3_text", {}), ("t5", {}), ("bart", {})])
def test_other_prompts_stay_embeddings(make, kind, changes, tmp_path) -> None:
    config = make(task_type=task_of(kind), num_virtual_tokens=LENGTH)
    assert check(kind, config, tmp_path, batch_of(kind), **changes).merge == "embedding"


def test_an_lstm_is_read_as_what_it_computed(tmp_path) -> None:
    config = peft.PromptEncoderConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=LENGTH, encoder_reparameterization_type="LSTM",
        encoder_hidden_size=16,
    )  # fmt: skip
    check("bart", config, tmp_path, batch_of("bart"))


def test_rows_padded_on_the_left_generate_the_same(tmp_path) -> None:
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH)
    model, base = trained_adapter("llama", config, tmp_path), tiny_base("llama")
    prefix, batch = import_prefix(tmp_path, base), random_batch([9, 4, 6], side="left")
    expected = model.generate(**batch, max_new_tokens=8, do_sample=False)
    with base.attach(prefix):
        found = base.model.generate(**batch, max_new_tokens=8, do_sample=False)
    assert torch.equal(found, expected)
    assert not torch.equal(base.model.generate(**batch, max_new_tokens=8, do_sample=False), expected)


def test_a_prompt_of_peft_goes_back_as_prefix_tuning(tmp_path) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH)
    trained, base = trained_adapter("llama", config, tmp_path / "prompt"), tiny_base("llama")
    export_prefix(import_prefix(tmp_path / "prompt", base), "peft", tmp_path / "prefix", base)
    model, batch = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "prefix").eval(), batch_of("llama")
    assert model.peft_config["default"].peft_type == "PREFIX_TUNING"
    assert difference(logits_of(model, batch), logits_of(trained, batch)) < TOLERANCE
