"""Every registered method as a test case: a producer on a tiny base, moved away from its start."""

from __future__ import annotations

from typing import Any

import torch

from foreword.base import Base
from foreword.base.compose import token_prefix
from foreword.methods import METHODS, Producer, Start, get_method
from foreword.prefix import Prefix
from tiny import tiny_base, trained_like

# Settings that suit tiny models; a method that is not named here is tested at its defaults
OPTIONS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": 24}, "ptuning": {"hidden": 24}, "lowrank": {"rank": 3}, "shared": {"width": 3},
    "conditioned": {"rank": 3, "hidden": 8},
}  # fmt: skip
CASES = [(name, OPTIONS.get(name, {})) for name in METHODS] + [("ptuning", {"hidden": 24, "encoder": "mlp"})]
EMBEDDED = ("prompt", "ptuning")  # what they train are input embeddings
IDS = torch.randint(3, 250, (6,), generator=torch.Generator().manual_seed(5))


def case_id(case) -> str:
    return "-".join((case[0], *map(str, case[1].values())))


def start_of(base: Base, name: str, seed: int = 1) -> Start:
    ids = (IDS + 3 * seed) % 250 + 3
    embeddings = base.model.get_input_embeddings()(ids).detach()
    initial = token_prefix(ids.tolist(), base, "text") if name in EMBEDDED else trained_like(base, 6, seed)
    return Start(initial, embeddings, base)


def producer_of(base: Base, case, seed: int = 1) -> Producer:
    torch.manual_seed(seed)
    name, options = case
    method = get_method(name)
    return method.start(start_of(base, name, seed), method.parse_options(options))


def moved(producer: Producer, amount: float = 0.1) -> Producer:
    """Away from the start, where networks, gates and memories are silent."""
    with torch.no_grad():
        for parameter in producer.parameters():
            parameter.add_(amount * torch.randn(parameter.shape))
    return producer


def run_rows(base: Base, rows: Any, batch: dict, backend: str = "auto", side: str = "right") -> torch.Tensor:
    """Logits at real tokens, `[tokens, vocab]`, of a right-padded batch; prefixes made ready for their rows."""
    ids = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    made = base.inputs(ids, rows)
    # as generate counts them; by itself the base counts padding too, and a prefix of offset 0 leaves that alone
    tensors = made.tensors
    tensors["position_ids"] = (tensors["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    if side == "right":
        from foreword.base.inputs import padded, ready

        tensors = padded(base, ready(base, [None] * len(ids), ids)[1], left=False)
    with base.attach(made.rows, backend=backend):
        logits = base.model(**tensors, use_cache=False).logits
    return logits[tensors["attention_mask"].bool()]


def row_for(base: Base, prefix: Prefix) -> Prefix:
    """What a row of three tokens gets of `prefix`."""
    (row,) = base.inputs([[5, 6, 7]], prefix).rows
    assert row is not None
    return row


def finished(base: Base, case, seed: int = 1) -> Prefix:
    return moved(producer_of(base, case, seed)).finish()


__all__ = [
    "CASES",
    "EMBEDDED",
    "case_id",
    "finished",
    "moved",
    "producer_of",
    "row_for",
    "run_rows",
    "start_of",
    "tiny_base",
]
