"""Attached prefixes against `past_key_values` and against the reference: logits and gradients.

Every case also shows that leaving out the prefix, the mask or the offset fails by 100 × the tolerance.
"""

from __future__ import annotations

import pytest
import torch

from parity_helpers import CONTROL, TOLERANCE, gradients, real, run, run_cached, without_offset
from tiny import ARCHITECTURES, SLIDING, random_batch, relative, tiny_base, trained_like

SIZES = [11, 4, 8]
BACKENDS = ("auto", "math")


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_equals_past_key_values(kind: str, side: str) -> None:
    base = tiny_base(kind)
    prefix, batch = trained_like(base, 7, grad=True), random_batch(SIZES, side)
    expected = run_cached(base, prefix, batch)
    expected_gradients = gradients(expected, batch, prefix)
    expected = real(expected, batch)
    for backend in (*BACKENDS, "reference"):
        logits = run(base, prefix, batch, backend)
        assert relative(real(logits, batch), expected) < TOLERANCE
        assert relative(gradients(logits, batch, prefix), expected_gradients) < TOLERANCE
    _controls(base, prefix, batch, expected, side)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", SLIDING)
def test_sliding_window_equals_reference(kind: str, side: str) -> None:
    base = tiny_base(kind, **SLIDING[kind])
    assert any(slot.sliding_window == 8 for slot in base.slots)
    sizes = [25, 9, 17]
    prefix, batch = trained_like(base, 7, grad=True), random_batch(sizes, side)
    expected = run(base, prefix, batch, "reference")
    expected_gradients = gradients(expected, batch, prefix)
    expected = real(expected, batch)
    for backend in BACKENDS:
        logits = run(base, prefix, batch, backend)
        assert relative(real(logits, batch), expected) < TOLERANCE
        assert relative(gradients(logits, batch, prefix), expected_gradients) < TOLERANCE
    _controls(base, prefix, batch, expected, side)


def test_sliding_window_keeps_the_prefix_visible() -> None:
    """An independent check: eager attention with a hand-made mask in which the prefix is always visible."""
    base = tiny_base("mistral", sliding_window=8)
    prefix, batch = trained_like(base, 7), random_batch([30, 30])
    logits = run(base, prefix, batch)
    plain = tiny_base("mistral", sliding_window=None)
    plain.model.load_state_dict(base.model.state_dict())
    plain.model.set_attn_implementation("eager")
    from transformers import DynamicCache

    steps = torch.arange(30)
    distance = steps[:, None] - steps[None]
    band = (distance >= 0) & (distance < 8)
    visible = torch.cat([torch.ones(30, 7, dtype=torch.bool), band], dim=1)
    mask = torch.zeros(2, 1, 30, 37).masked_fill(~visible, float("-inf"))
    pairs = [tuple(part[None].expand(2, -1, -1, -1) for part in kv) for kv in prefix.slots.values()]
    positions = steps[None] + 7
    expected = plain.model(
        batch["input_ids"], attention_mask=mask, position_ids=positions, past_key_values=DynamicCache(pairs)
    ).logits
    assert relative(logits, expected) < TOLERANCE
    assert relative(run_cached(plain, prefix, batch), expected) > CONTROL  # the window matters


def _controls(base, prefix, batch, expected, side) -> None:
    """Wrong on purpose, one thing at a time."""
    without_mask = {"input_ids": batch["input_ids"]}
    assert relative(real(run(base, None, batch), batch), expected) > CONTROL, "no prefix"
    assert relative(real(run(base, without_offset(prefix), batch), batch), expected) > CONTROL, "no offset"
    if side == "left":  # on the right, causality already hides the padding
        assert relative(real(run(base, prefix, without_mask), batch), expected) > CONTROL, "no mask"


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
