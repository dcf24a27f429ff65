"""The trunk's invariants over every registered method: parity, padding, mixed rows, checkpointing, detach, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foreword
from foreword.errors import PrefixMismatchError
from foreword.methods import METHODS
from method_cases import CASES, case_id, finished, moved, producer_of, run_rows
from parity_helpers import CONTROL, TOLERANCE, enable_checkpointing, run_expected
from tiny import random_batch, relative, tiny_base

every_case = pytest.mark.parametrize("case", CASES, ids=case_id)


@every_case
def test_parity_with_the_reference(case) -> None:
    """Outputs and gradients of every parameter; leaving the prefix out fails by a hundred times the tolerance."""
    base = tiny_base()
    producer, batch = moved(producer_of(base, case)), random_batch([9, 12, 5])
    parameters, found = list(producer.parameters()), {}
    for backend in ("reference", "auto", "math"):
        values = run_rows(base, producer(), batch, backend)
        found[backend] = values, torch.autograd.grad(values.logsumexp(-1).mean(), parameters)
    expected, gradients = found.pop("reference")
    for values, own in found.values():
        assert relative(values, expected) < TOLERANCE
        for one, other in zip(own, gradients, strict=True):
            assert relative(one, other) < TOLERANCE
    assert relative(run_rows(base, None, batch), expected) > CONTROL


@every_case
def test_keys_and_values_equal_the_models_own_attention_over_them(case) -> None:
    """For what joins the softmax: the model's eager attention over concatenated keys, one row at a time."""
    base = tiny_base()
    prefix, batch = finished(base, case), random_batch([9, 5])
    ids = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    rows = [row for row in base.inputs(ids, prefix).rows if row is not None]
    assert len(rows) == 2
    if rows[0].merge != "softmax":
        assert not METHODS[case[0]].kind(base.model).is_cache
        return
    for number, row in enumerate(rows):
        single = {"input_ids": torch.tensor([ids[number]]), "attention_mask": torch.ones(1, len(ids[number])).long()}
        expected = run_expected(base, row, single)[0]
        assert relative(run_rows(base, prefix, single), expected) < TOLERANCE
        without = foreword.Prefix(row.slots, 0, row.base)
        assert relative(run_expected(base, without, single)[0], expected) > CONTROL


@every_case
def test_padding_changes_nothing(case) -> None:
    base = tiny_base()
    prefix, sizes = finished(base, case), [9, 12, 5, 1]
    batch = random_batch(sizes)
    for side in ("right", "left"):
        together = run_rows(base, prefix, batch, side=side).split(sizes)
        for row, size in enumerate(sizes):
            single = {name: value[row : row + 1, :size] for name, value in batch.items()}
            assert relative(together[row], run_rows(base, prefix, single)) < TOLERANCE


@every_case
def test_mixed_rows_equal_separate_runs(case) -> None:
    """With another prefix of the method, a static one and the plain base in one batch."""
    base, sizes = tiny_base(), [9, 12, 5, 7]
    a, b, static = finished(base, case), finished(base, case, seed=2), finished(base, ("direct", {}), seed=3)
    batch, rows = random_batch(sizes), [a, static, None, b]
    together = run_rows(base, rows, batch).split(sizes)
    for row, (prefix, size) in enumerate(zip(rows, sizes, strict=True)):
        single = {name: value[row : row + 1, :size] for name, value in batch.items()}
        assert relative(together[row], run_rows(base, prefix, single)) < TOLERANCE
    assert relative(run_rows(base, [a, static, None, a], batch).split(sizes)[3], together[3]) > CONTROL


@every_case
def test_activation_checkpointing_gives_the_same_gradients(case) -> None:
    base = tiny_base()
    producer, batch = moved(producer_of(base, case)), random_batch([9, 5])
    parameters = list(producer.parameters())

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(run_rows(base, producer(), batch).logsumexp(-1).mean(), parameters)

    expected = gradients()
    enable_checkpointing(base.model, reentrant=False)
    for one, other in zip(gradients(), expected, strict=True):
        assert relative(one, other) < TOLERANCE


@every_case
def test_detaching_restores_the_base(case) -> None:
    base, batch = tiny_base(), random_batch([9, 5])
    before = base.model(**batch).logits
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in base.model.modules()]
    run_rows(base, finished(base, case), batch)
    assert torch.equal(base.model(**batch).logits, before)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in base.model.modules()] == hooks


@every_case
def test_saved_and_loaded_it_does_the_same(case, tmp_path) -> None:
    base, batch = tiny_base(), random_batch([9, 5])
    prefix = finished(base, case)
    loaded = foreword.Prefix.load(prefix.save(tmp_path / "p"))
    assert torch.equal(run_rows(base, loaded, batch), run_rows(base, prefix, batch))
    assert loaded.merge == prefix.merge == METHODS[case[0]].kind(base.model).name


@every_case
def test_generated_text_with_beams_and_alone(case) -> None:
    """Beam search has k·B rows; a row's own prefix stays its own at every step."""
    base = tiny_base()
    prefix, prompts = finished(base, case), ["abc", "a longer prompt", "x"]
    ways: tuple[dict[str, Any], ...] = ({}, {"num_beams": 3})
    for options in ways:
        together = base.generate(prompts, prefix, max_new_tokens=6, **options)
        alone = [base.generate([prompt], prefix, max_new_tokens=6, **options)[0] for prompt in prompts]
        assert together == alone
    assert together != base.generate(prompts, None, max_new_tokens=6, num_beams=3)


@every_case
def test_another_base_is_refused(case) -> None:
    prefix = finished(tiny_base(), case)
    with pytest.raises(PrefixMismatchError, match="num_layers"), tiny_base(num_hidden_layers=2).attach(prefix):
        pass
