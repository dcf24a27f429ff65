"""Activation checkpointing: the same loss and gradients, wherever backward runs; or a typed error."""

from __future__ import annotations

import pytest
import torch

from foreword.attach.function import IMPLEMENTATION
from foreword.errors import RecomputeError
from parity_helpers import TOLERANCE, enable_checkpointing, gradients, make_batch, outputs, run
from tiny import CASES, VARIANTS, case_name, random_batch, relative, tiny_base, trained_like


@pytest.mark.parametrize("backward", ["inside", "outside", "under another attach"])
@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_activation_checkpointing(case, backward, matrix) -> None:
    base = tiny_base(case[0], **VARIANTS.get(case, {}))
    prefix, other = trained_like(base, 6, grad=True), trained_like(base, 4, seed=9)
    batch = make_batch(base, [11, 4, 8])
    if not base.model.supports_gradient_checkpointing:
        matrix("checkpointing", "no: the model has none")
        return
    expected = run(base, prefix, batch)
    expected_gradients = gradients(expected, batch, prefix)
    enable_checkpointing(base.model, reentrant=False)
    if base.model_slots.route == "cache":
        with base.attach(prefix), pytest.raises(RecomputeError, match="past_key_values"):
            outputs(base.model, batch)
        matrix("checkpointing", "no: RecomputeError")
        return
    calls = _count_checkpoints(base.model)
    with base.attach(prefix):
        values = outputs(base.model, batch)
        if backward == "inside":
            found = gradients(values, batch, prefix)
    assert calls, "nothing was checkpointed, so this test could not fail"
    if backward == "outside":
        found = gradients(values, batch, prefix)
    elif backward == "under another attach":
        with base.attach(other):
            found = gradients(values, batch, prefix)
    assert relative(values, expected) < TOLERANCE
    assert relative(found, expected_gradients) < TOLERANCE
    assert base.model.config._attn_implementation != IMPLEMENTATION
    matrix("checkpointing", "yes")


def _count_checkpoints(model) -> list[str]:
    calls: list[str] = []
    for layer in model.modules():
        function = layer.__dict__.get("_gradient_checkpointing_func")
        if function is not None:

            def counted(*args, _function=function, **kwargs):
                calls.append("checkpoint")
                return _function(*args, **kwargs)

            layer._gradient_checkpointing_func = counted
    return calls


def test_a_reference_policy_inside_a_checkpointed_step() -> None:
    """The plain base within an attach, without gradients, while layers checkpoint: no prefix leaks into it."""
    base = tiny_base("llama")
    prefix, batch = trained_like(base, 6, grad=True), random_batch([11, 4])
    plain = run(base, None, batch)
    enable_checkpointing(base.model, reentrant=False)
    with base.attach(prefix):
        base.model(**batch, use_cache=False)
        with base.attach(None), torch.no_grad():
            assert relative(base.model(**batch, use_cache=False).logits, plain) < TOLERANCE


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_reentrant_checkpointing_is_refused(kind) -> None:
    base = tiny_base(kind)
    prefix = trained_like(base, 4, grad=True)
    enable_checkpointing(base.model, reentrant=True)
    with base.attach(prefix), pytest.raises(RecomputeError, match="use_reentrant"):
        outputs(base.model, make_batch(base, [5]))
