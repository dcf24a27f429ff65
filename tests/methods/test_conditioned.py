"""`conditioned`: the prefix depends on the row's own input, and on nothing else."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import foreword
from foreword.base.inputs import mean_embeddings, ready
from foreword.errors import AttachError
from foreword.tasks import TaskSettings, make_task
from method_cases import finished, row_for
from tiny import relative, tiny_base

CASE = ("conditioned", {"rank": 3, "hidden": 8})


def same(one, other) -> bool:
    return all(torch.equal(a, b) for (_, a), (_, b) in zip(one.tensors(), other.tensors(), strict=True))


def lm_items(base, *pairs):
    task = make_task(base, "lm", TaskSettings("{input}="))
    return task, [task.item({"input": text, "target": target}, "here") for text, target in pairs]


def test_a_target_does_not_leak(monkeypatch) -> None:
    """Rows of one input and different targets get the same prefix in training; another input another one."""
    from foreword.tasks import lm

    base = tiny_base()
    prefix, seen = finished(base, CASE), []

    def watched(*arguments):
        made = ready(*arguments)
        seen.append(made[0])
        return made

    monkeypatch.setattr(lm, "ready", watched)
    task, items = lm_items(base, ("abc", "x"), ("abc", "quite another"), ("abd", "x"))
    task.losses(prefix, items)
    one, other, third = seen[0]
    assert same(one, other)
    assert not same(one, third)
    task.losses(prefix, [dataclasses.replace(items[0], target_ids=(9, 9, 9))])
    assert same(seen[1][0], one)


def test_the_prefix_of_generation_is_that_of_training() -> None:
    base = tiny_base()
    prefix = finished(base, CASE)
    _, (item,) = lm_items(base, ("abc", "x"))
    (row,), _ = ready(base, [prefix], [item.prompt_ids])
    texts = base.generate(["abc", "something longer"], prefix, template="{input}=", max_new_tokens=6)
    assert texts[0] == base.generate(["abc"], row, template="{input}=", max_new_tokens=6)[0]
    assert relative(base_logits(base, row, item), base_logits(base, finished(base, ("direct", {})), item)) > 0.01


def base_logits(base, prefix, item):
    with base.attach(prefix):
        return base.model(torch.tensor([item.prompt_ids])).logits


def test_it_is_computed_once_per_row_and_then_kept(monkeypatch) -> None:

    base, calls = tiny_base(), []
    real = foreword.Prefix.for_input

    def counted(*arguments):
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(foreword.Prefix, "for_input", counted)
    base.generate(["abc", "de"], finished(base, CASE), max_new_tokens=8, num_beams=2)
    assert len(calls) == 2


def test_the_mean_is_over_the_rows_own_tokens() -> None:
    base = tiny_base()
    table = base.model.get_input_embeddings().weight
    found = mean_embeddings(base, [[5, 6, 7], [9]])
    assert torch.allclose(found[0], table[[5, 6, 7]].mean(0))
    assert torch.allclose(found[1], table[9])


def test_attaching_it_as_a_whole_is_refused() -> None:
    base = tiny_base()
    with (
        pytest.raises(AttachError, match=r"differs from row to row; .*base\.inputs"),
        base.attach(finished(base, CASE)),
    ):
        pass


def test_stored_in_half_precision_it_does_nearly_the_same(tmp_path) -> None:
    import foreword

    base = tiny_base()
    prefix = finished(base, CASE)
    half = foreword.Prefix.load(prefix.to(torch.float16).save(tmp_path / "p"))
    rows = [row_for(base, one) for one in (prefix, half)]
    for slot, kv in rows[0].slots.items():
        assert relative(rows[1].slots[slot].key.float(), kv.key) < 1e-2
