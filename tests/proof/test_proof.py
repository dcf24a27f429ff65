"""Architectures outside the table: tried at load, used if exact, else refused with the check that failed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

import foreword
import strange
from foreword.base import Base
from foreword.base.loading import empty_model
from foreword.cli.main import execute
from foreword.errors import PositionError, UnsupportedModelError
from foreword.models.architectures import ARCHITECTURES, Architecture, architecture_of
from foreword.models.slots import find_slots
from foreword.prefix import Fingerprint, Prefix
from foreword.proof import gate
from foreword.proof.checks import CheckFailed, Checks
from foreword.proof.company import in_company
from foreword.proof.small import small_model, uncovered
from foreword.proof.trial import Trial
from parity_helpers import CONTROL, TOLERANCE, make_batch, real, run, run_expected
from tiny import byte_tokenizer, relative, tiny_model, trained_like

SIZES: dict[str, Any] = {
    "vocab_size": 260, "hidden_size": 96, "num_hidden_layers": 5, "num_attention_heads": 6, "pad_token_id": 258,
    "bos_token_id": 256, "eos_token_id": 257, "max_position_embeddings": 300,
}  # fmt: skip
NARROW = {"intermediate_size": 112, "num_key_value_heads": 3}
# Not in the table; each has something that the others lack
VERIFIED: dict[str, dict[str, Any]] = {
    "qwen2_moe": {  # experts and windows
        **NARROW, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 48, "use_sliding_window": True,
        "shared_expert_intermediate_size": 48, "sliding_window": 12, "max_window_layers": 3, "num_attention_heads": 6,
    },
    "glm": NARROW | {"head_dim": 16, "partial_rotary_factor": 0.5},  # interleaved, half of each key
    "exaone4": NARROW | {"sliding_window": 12, "sliding_window_pattern": 3},  # layers without positions
    "gpt_bigcode": {"n_inner": 112},  # learned positions, one key head
    "olmo_hybrid": NARROW | {"num_hidden_layers": 4},  # recurrent layers
    "camembert": {"intermediate_size": 112, "pad_token_id": 1},  # encoder; counts positions from the padding's id
    "eurobert": NARROW,  # encoder, rotary
}  # fmt: skip


def require_type(kind: str) -> None:
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this version of Transformers has no {kind}")


def model_of(kind: str, **changes: Any) -> Any:
    settings = SIZES | VERIFIED.get(kind, {}) | changes
    require_type(kind)
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **settings)
    auto = "AutoModelForMaskedLM" if kind in ("camembert", "eurobert") else "AutoModelForCausalLM"
    model = getattr(transformers, auto).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(8.0)
    return model


@pytest.mark.parametrize("kind", VERIFIED)
def test_a_verified_type_is_exact(kind) -> None:
    """The type passes its proof, and the model itself, which is larger than the tiny one, is exact too."""
    assert kind not in ARCHITECTURES
    base = Base(model_of(kind), byte_tokenizer(), name=kind)
    assert base.fingerprint.support == "verified at load"
    decoder = base.slots[0].role == "decoder"
    prefix, batch = trained_like(base, 7), make_batch(base, [25, 9, 17], "left" if decoder else "right")
    if kind == "camembert":
        batch["input_ids"][batch["attention_mask"] == 0] = 1
    with torch.no_grad():
        expected = real(run_expected(base, prefix, batch), batch)
        assert relative(real(run(base, prefix, batch), batch), expected) < TOLERANCE
        assert relative(real(run(base, None, batch), batch), expected) > CONTROL


def test_a_lora_on_a_verified_type() -> None:
    pytest.importorskip("peft")
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model_of("glm"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    base = Base(model, name="glm with a LoRA")
    assert (base.fingerprint.architecture, base.fingerprint.support) == ("GlmForCausalLM", "verified at load")
    prefix, batch = trained_like(base, 5), make_batch(base, [12, 12])
    with torch.no_grad():
        expected = run(base, prefix, batch)
        assert relative(run(base, prefix.with_offset(9, base), batch), expected) < TOLERANCE


def test_what_a_proof_finds_is_kept_with_the_prefix(tmp_path) -> None:
    base = Base(model_of("glm"), byte_tokenizer(), name="glm")
    architecture = architecture_of(base.model)
    assert (architecture.kind, architecture.positions, architecture.layout) == ("decoder", "rotary", "interleaved")
    loaded = Prefix.load(trained_like(base, 4).save(tmp_path / "prefix"))
    assert loaded.base.support == "verified at load"
    base.require_fit(loaded)
    assert Base(tiny_model("llama")).fingerprint.support is None
    assert Fingerprint("a", "b", 1, 1, 1).support is None


def test_an_offset_is_changed_where_the_proof_found_out_how() -> None:
    base = Base(model_of("glm"), name="glm")
    prefix, batch = trained_like(base, 7), make_batch(base, [20, 20])
    with torch.no_grad():
        expected = run(base, prefix, batch)
        assert relative(run(base, prefix.with_offset(31, base), batch), expected) < TOLERANCE
        assert relative(run(base, replace(prefix, position_offset=31), batch), expected) > CONTROL
    unknown = Base(model_of("exaone4"), name="exaone4")
    with pytest.raises(PositionError, match="pairs the channels"):
        trained_like(unknown, 7).with_offset(31, unknown)


def test_a_stored_model_loads(tmp_path) -> None:
    model_of("qwen2_moe").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    base = foreword.load(tmp_path, device="cpu")
    assert [slot.sliding_window for slot in base.slots] == [12, None, 12, None, None]
    prefix = Prefix.from_text("hello", base)
    assert base.generate(["a", "bc"], [prefix, None], max_new_tokens=4)


def test_an_encoder_loads_as_the_class_its_checkpoint_names(tmp_path) -> None:
    model_of("camembert").save_pretrained(tmp_path)
    base = foreword.load(tmp_path, device="cpu")
    assert type(base.model).__name__ == "CamembertForMaskedLM"
    assert {slot.role for slot in base.slots} == {"encoder"}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("diffllama", "DiffLlamaAttention at .* attends more than once in a pass"),
        ("doge", "DogeAttention at .* computes more than attention over its keys and values: .* differs by [0-9.e-]+"),
        ("inkling_text", "the plain model within an attach differs by"),
        ("gpt_neo", "no attention of it dispatches"),
    ],
)
def test_types_that_would_go_wrong_are_refused(kind, reason) -> None:
    require_type(kind)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind))
    with pytest.raises(UnsupportedModelError, match=rf"model_type '{kind}'.* takes no prefix: .*{reason}"):
        gate.require_proof(model)
    with pytest.raises(UnsupportedModelError, match="was not verified"):
        find_slots(model)


def test_diffllama_fails_the_comparison_too() -> None:
    """Even if its two calls are not noticed."""
    settings = SIZES | NARROW | {"num_key_value_heads": 2, "num_hidden_layers": 2}
    config = transformers.AutoConfig.for_model("diffllama", **settings)
    model = transformers.AutoModelForCausalLM.from_config(config)
    architecture = Architecture("DiffLlamaAttention", verified=True)
    small = small_model(model, 0.2)
    checks = Checks(Trial(small), architecture, find_slots(small, architecture))
    with pytest.raises(CheckFailed, match="computes more than attention"):
        in_company(checks)


@pytest.mark.parametrize("attention", [strange.PlainAttention, strange.GatedAttention])
def test_code_of_other_packages_is_welcome_if_it_is_exact(attention) -> None:
    base = Base(strange.strange(attention))
    assert base.fingerprint.support == "verified at load"
    assert len(base.slots) == 4


@pytest.mark.parametrize(
    ("attention", "reason"),
    [
        (strange.SummingAttention, "the plain model within an attach differs by"),
        (strange.BiasedAttention, "the plain model within an attach differs by"),
        (strange.CountingAttention, "computes more than attention"),
        (strange.NoisyAttention, "the plain model within an attach differs by"),
        (strange.SilentAttention, "proves nothing: leaving out the prefix"),
        (strange.TwiceAttention, "attends more than once"),
    ],
)
def test_other_attention_is_refused(attention, reason) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        Base(strange.strange(attention))


FACTS = ("kind", "positions", "limit", "after_padding", "counts_mask", "recurrent")


@pytest.mark.parametrize(
    "kind",
    ["llama", "gpt2", "opt", "cohere2", "deepseek_v3", "gemma4_text", "jamba", "falcon_h1", "roberta", "modernbert",
     "bart", "t5", "vit"],
)  # fmt: skip
def test_the_proof_finds_what_the_table_says(kind) -> None:
    found, entry = gate.prove(tiny_model(kind)).architecture, ARCHITECTURES[kind]
    assert found is not None
    assert [getattr(found, name) for name in FACTS] == [getattr(entry, name) for name in FACTS]
    assert found.layout == (entry.layout if kind in ("llama", "cohere2", "deepseek_v3", "gemma4_text", "falcon_h1",
                                                     "modernbert") else "unknown")  # fmt: skip
    assert found.packs


def test_a_model_with_a_part_that_the_tiny_one_lacks_is_not_covered() -> None:
    model = model_of("qwen2_moe")
    small = small_model(model, 0.2)
    assert uncovered(model, small, ("Qwen2MoeAttention",)) is None
    for layer in small.model.layers:
        layer.self_attn.sliding_window = None
    assert uncovered(model, small, ("Qwen2MoeAttention",)) == "Qwen2MoeAttention as at model.layers.0.self_attn"


def test_a_proof_disturbs_nothing() -> None:
    model = empty_model(transformers.AutoConfig.for_model("olmo"))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with torch.inference_mode():
        assert gate.prove(model).architecture is not None
    assert torch.equal(torch.get_rng_state(), before)
    assert model.config._attn_implementation != "foreword-proof"


def test_slots_say_so(tmp_path, capsys) -> None:
    transformers.AutoConfig.for_model("olmo", **SIZES, **NARROW).save_pretrained(tmp_path)
    assert execute(["slots", str(tmp_path)]) == 0
    assert "olmo is not in the table of architectures; verified at load" in capsys.readouterr().out
    assert execute(["slots", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["support"] == "verified at load"
    assert execute(["methods", str(tmp_path)]) == 0
    transformers.AutoConfig.for_model("doge", **SIZES, **NARROW).save_pretrained(tmp_path)
    assert execute(["slots", str(tmp_path)]) == 1
    assert "differs by" in capsys.readouterr().err.replace("\n", " ")
