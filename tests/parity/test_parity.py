"""Attached prefixes against the model's own eager attention and against `past_key_values`: outputs and gradients.

Every case also shows that leaving out the prefix, the mask or the offset fails by 100 × the tolerance.
"""

from __future__ import annotations

import pytest
import torch

from foreword.attention import backends
from parity_helpers import (
    CONTROL,
    TOLERANCE,
    gradients,
    make_batch,
    only,
    real,
    run,
    run_cached,
    run_expected,
    without_offset,
)  # fmt: skip
from tiny import (
    BOTH,
    CASES,
    DECODERS,
    ENCODERS,
    SLIDING,
    VARIANTS,
    case_name,
    relative,
    tiny_base,
    trained_like,
)

SIZES = [25, 9, 17]
NO_POSITIONS = ("jamba", "bloom", "mpt")  # an offset has nothing to move there


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_equals_the_models_own_attention(case, side, matrix, monkeypatch) -> None:
    kind = case[0]
    base = tiny_base(kind, **VARIANTS.get(case, {}))
    prefix, batch = trained_like(base, 7, grad=True), make_batch(base, SIZES, side)
    expected = run_expected(base, prefix, batch)
    expected_gradients = gradients(expected, batch, prefix)
    expected = real(expected, batch)
    cached = base.model_slots.route == "cache"
    for backend in ("auto",) if cached else ("auto", "math", "reference"):
        values = run(base, prefix, batch, backend)
        assert relative(real(values, batch), expected) < TOLERANCE
        assert relative(gradients(values, batch, prefix), expected_gradients) < TOLERANCE
    _controls(base, prefix, batch, expected, side)
    matrix("prefix", "yes")
    matrix("backend", _backends_used(base, prefix, batch, monkeypatch))


def _backends_used(base, prefix, batch, monkeypatch) -> str:
    """What `slots` says, once it is seen to be what happens."""
    used, choose = set(), backends.choose

    def watched(call):
        chosen = choose(call)
        used.add("math" if chosen is None else chosen.name.partition("-")[0])
        return chosen

    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(backends, "choose", watched)
        run(base, prefix, batch)
    said = {slot.backend for slot in base.slots}
    assert used == ({backend.partition(" ")[0] for backend in said} if base.model_slots.route == "attention" else set())
    return "; ".join(sorted(said))


def _controls(base, prefix, batch, expected, side) -> None:
    """Wrong on purpose, one thing at a time."""
    kind = base.model.config.model_type
    assert relative(real(run(base, None, batch), batch), expected) > CONTROL, "no prefix"
    if base.model_slots.explicit_positions and prefix.position_offset and kind not in NO_POSITIONS:
        assert relative(real(run(base, without_offset(prefix), batch), batch), expected) > CONTROL, "no offset"
    if "attention_mask" in batch and (
        side == "left" or (kind in ENCODERS + BOTH and kind != "clip_text_model")
    ):  # else causality hides the padding
        bare = {name: value for name, value in batch.items() if name != "attention_mask"}
        assert relative(real(run(base, prefix, bare), batch), expected) > CONTROL, "no mask"


@pytest.mark.parametrize("role", ["encoder", "decoder", "cross"])
@pytest.mark.parametrize("kind", BOTH)
def test_each_role_alone(kind, role) -> None:
    base = tiny_base(kind)
    whole, batch = trained_like(base, 7, grad=True), make_batch(base, SIZES)
    prefix = only(whole, role)
    assert {slot.role for slot in base.slots} == {"encoder", "decoder", "cross"}
    expected = run_expected(base, prefix, batch)
    values = run(base, prefix, batch)
    assert relative(real(values, batch), real(expected, batch)) < TOLERANCE
    assert relative(gradients(values, batch, prefix), gradients(expected, batch, prefix)) < TOLERANCE
    assert relative(real(run(base, None, batch), batch), real(expected, batch)) > CONTROL
    assert relative(real(run(base, whole, batch), batch), real(expected, batch)) > CONTROL


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_is_a_portable_cache(case, matrix) -> None:
    """The same tensors, handed to plain Transformers as `past_key_values`, give the same logits wherever its cache
    can hold them: not in a window shorter than prefix and text, nor as MLA's latents."""
    kind = case[0]
    if kind not in DECODERS:
        matrix("exports", "no: not a decoder")
        return
    base = tiny_base(kind, **VARIANTS.get(case, {}))
    prefix, batch = trained_like(base, 7), make_batch(base, [25, 25])
    attached = run(base, prefix, batch)
    try:
        found = relative(attached, run_cached(base, prefix, batch))
    except RuntimeError:
        assert kind == "deepseek_v3"
        matrix("exports", "no: its cache holds something else")
        return
    assert (found > CONTROL) if case[1] in ("window8", "chunk8") else (found < TOLERANCE)
    assert relative(run(base, None, batch), attached) > CONTROL
    matrix("exports", "past_key_values" if found < TOLERANCE else "no: past_key_values forget it")


def test_window_and_chunk_matter() -> None:
    """The sliding cases are not just full attention in disguise."""
    for kind, changes in SLIDING.items():
        small, large = tiny_base(kind, **changes), tiny_base(kind)
        batch = make_batch(small, [25])
        if kind == "qwen2" or kind == "mistral":
            assert any(slot.sliding_window == 8 for slot in small.slots)
        assert relative(run(small, None, batch), run(large, None, batch)) > CONTROL, kind


def test_llama4_queries_are_tuned_by_their_place_behind_the_prefix() -> None:
    """Its layers without positions scale queries by their index in the cache, which the prefix moves."""
    base = tiny_base("llama4_text", floor_scale=4, attn_scale=3.0)
    prefix, batch = trained_like(base, 7), make_batch(base, [25, 25])
    expected = run_cached(base, prefix, batch)
    assert relative(run(base, prefix, batch), expected) < TOLERANCE
    assert relative(run(base, [prefix, None], batch)[1], run(base, None, batch)[1]) < TOLERANCE
    plain = tiny_base("llama4_text")
    plain.model.load_state_dict(base.model.state_dict())
    assert relative(run(plain, prefix, batch), expected) > CONTROL, "the tuning makes no difference here"


def test_sliding_window_keeps_the_prefix_visible() -> None:
    """An independent check: a hand-made mask in which the prefix is always visible, through past_key_values."""
    from transformers import DynamicCache

    base = tiny_base("mistral", sliding_window=8)
    prefix, batch = trained_like(base, 7), make_batch(base, [30, 30])
    plain = tiny_base("mistral", sliding_window=None)
    plain.model.load_state_dict(base.model.state_dict())
    plain.model.set_attn_implementation("eager")
    steps = torch.arange(30)
    distance = steps[:, None] - steps[None]
    visible = torch.cat([torch.ones(30, 7, dtype=torch.bool), (distance >= 0) & (distance < 8)], dim=1)
    mask = torch.zeros(2, 1, 30, 37).masked_fill(~visible, float("-inf"))
    pairs = [tuple(part[None].expand(2, -1, -1, -1) for part in kv) for kv in prefix.slots.values()]
    expected = plain.model(
        batch["input_ids"], attention_mask=mask, position_ids=steps[None] + 7, past_key_values=DynamicCache(pairs)
    ).logits
    assert relative(run(base, prefix, batch), expected) < TOLERANCE
    assert relative(run_cached(plain, prefix, batch), expected) > CONTROL  # the window matters


@pytest.mark.smollm2
def test_smollm2_equals_past_key_values(smollm2) -> None:
    """Real weights, a real text as prefix, two padded rows."""
    from foreword import Prefix

    text = "Once upon a time there was a very small robot who liked to read old books about the sea."
    prefix = Prefix.from_text(text, smollm2, length=17)
    for kv in prefix.slots.values():
        kv.key.requires_grad_()
        kv.value.requires_grad_()
    batch = dict(
        smollm2.tokenizer(
            ["The robot said that the sea", "A completely different sentence of text"],
            return_tensors="pt", padding=True, padding_side="left",
        )
    )  # fmt: skip
    batch.pop("token_type_ids", None)
    expected = run_cached(smollm2, prefix, batch)
    logits = run(smollm2, prefix, batch)
    assert relative(real(logits, batch), real(expected, batch)) < TOLERANCE
    assert relative(gradients(logits, batch, prefix), gradients(expected, batch, prefix)) < TOLERANCE
    for wrong in (None, without_offset(prefix)):
        assert relative(real(run(smollm2, wrong, batch), batch), real(expected, batch)) > CONTROL


@pytest.mark.smollm2
def test_a_text_as_prefix_equals_the_text_in_front(smollm2) -> None:
    from foreword import Prefix

    tokenizer = smollm2.tokenizer
    head, tail = "The capital of France is Paris. The capital of Italy is", " Rome. The capital of Spain is"
    prefix = Prefix.from_text(head, smollm2)
    ids = tokenizer(tail, return_tensors="pt").input_ids
    whole = torch.cat([tokenizer(head, return_tensors="pt").input_ids, ids], dim=1)
    with torch.no_grad():
        expected = smollm2.model(whole).logits[:, prefix.length :]
        with smollm2.attach(prefix):
            logits = smollm2.model(ids).logits
        assert relative(logits, expected) < TOLERANCE
        assert relative(smollm2.model(ids).logits, expected) > CONTROL
