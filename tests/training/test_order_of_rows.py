"""Padded batches hold rows of like length, packed ones come at random."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

import foreword
from foreword.training.rows import load_rows, order_of, task_of
from tiny import tiny_base
from training_helpers import settings, write_rows


def padding(base: foreword.Base, config: foreword.TrainConfig) -> float:
    """Tokens of an epoch's batches if each were as wide as its longest row, times the tokens there are."""
    task = task_of(base, config)
    items = load_rows(task, config).training
    lengths = [item.num_tokens for item in items]
    batches = list(islice(order_of(task, items, config, 0), 4))
    assert sorted(index for batch in batches for index in batch) == list(range(24))
    return sum(max(lengths[index] for index in batch) * len(batch) for batch in batches) / sum(lengths)


@pytest.mark.parametrize(
    ("kind", "window", "changes", "packs"),
    [
        ("llama", None, {}, True),
        ("llama", None, {"method": "prompt"}, True),  # as keys and values
        ("llama", None, {"packing": False}, False),
        ("t5", None, {}, False),
        ("mistral", 64, {}, True),
        ("mistral", 64, {"method": "prompt"}, False),  # inserted among the embeddings
        ("mistral", 4, {}, False),  # rows longer than its window
    ],
)
def test_rows_are_sorted_by_length_only_where_batches_are_padded(tmp_path, kind, window, changes, packs) -> None:
    rows = write_rows(tmp_path, uneven=True)
    base = tiny_base(kind, **({"sliding_window": window} if window else {}))
    found = padding(base, settings(rows, **changes))
    assert (found > 1.25) == packs, f"{found:.2f}"


def test_a_mixture_packs_if_each_of_its_tasks_does(tmp_path) -> None:
    rows = write_rows(tmp_path, uneven=True)
    part = {
        "task": "lm",
        "data": str(rows / "train.jsonl"),
        "validation": str(rows / "valid.jsonl"),
        "template": "{input}=",
    }
    alone: dict[str, Any] = {"data": "", "validation": None, "template": None, "mixture": {"one": part}}
    assert padding(tiny_base(), settings(rows, **alone)) > 1.25
    assert padding(tiny_base(), settings(rows, packing=False, **alone)) < 1.25
