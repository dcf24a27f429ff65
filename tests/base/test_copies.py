"""Prefixes and bases are copied, pickled, and passed to the workers of a DataLoader."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from foreword import Base, Prefix
from foreword.errors import AttachError, PrefixError
from foreword.prefix import KV
from parity_helpers import run
from prefix_helpers import assert_same, small
from tiny import random_batch, tiny_base, trained_like


def unpickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - made in this line


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, unpickled])
def test_prefixes_survive(copied) -> None:
    prefix = small().with_record("direct", {"template": "{input}", "config": {"lr": 0.06, "slots": ["decoder.0"]}})
    made = copied(prefix)
    assert_same(made, prefix)
    assert dict(made.record) == dict(prefix.record)
    shares = made.slots["decoder.0"].key.data_ptr() == prefix.slots["decoder.0"].key.data_ptr()
    assert shares == (copied is copy.copy)
    with pytest.raises(TypeError):
        made.record["template"] = "changed"


def test_a_prefix_in_the_middle_of_a_computation_is_not_copied() -> None:
    prefix = small()
    leaf = torch.zeros(1, requires_grad=True)
    moved = {name: KV(kv.key + leaf, kv.value) for name, kv in prefix.slots.items()}
    with pytest.raises(PrefixError, match=r"decoder\.0\.key is the result of a computation"):
        copy.deepcopy(Prefix(moved, 3, prefix.base))


@pytest.mark.parametrize("copied", [copy.deepcopy, unpickled])
def test_bases_survive(copied) -> None:
    base = tiny_base("llama")
    prefix, batch = trained_like(base, 5), random_batch([7, 4])
    made: Base = copied(base)
    assert made.model is not base.model
    assert made.fingerprint == base.fingerprint
    assert torch.equal(run(made, prefix, batch), run(base, prefix, batch))
    with base.attach(prefix):  # the copy is a base of its own
        assert torch.equal(made.model(**batch).logits, run(base, None, batch))


def test_a_base_with_an_attachment_is_not_copied() -> None:
    base = tiny_base("llama")
    with base.attach(trained_like(base, 3)):
        for copied in (copy.deepcopy, pickle.dumps):
            with pytest.raises(AttachError, match="end the attach before"):
                copied(base)
    assert copy.deepcopy(base).name == base.name


class Prefixes(Dataset[Any]):
    """Items that workers make and send back: a prefix that fits, and tokens."""

    def __init__(self, base: Base, prefix: Prefix) -> None:
        self.base, self.prefix = base, prefix

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Prefix, list[int]]:
        self.base.require_fit(self.prefix)
        return self.prefix, self.base.tokenizer(f"row {index}")["input_ids"]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_data_loader(context: str) -> None:
    base = tiny_base("llama")
    prefix = trained_like(base, 5)
    loader = DataLoader(
        Prefixes(base, prefix), batch_size=None, num_workers=2, multiprocessing_context=context, collate_fn=None
    )
    rows = list(loader)
    assert [ids for _, ids in rows] == [base.tokenizer(f"row {index}")["input_ids"] for index in range(4)]
    assert all(sent.digest == prefix.digest for sent, _ in rows)
