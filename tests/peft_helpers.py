"""Real adapters of PEFT on tiny models, trained for a few steps, and their logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from foreword.base import Base
from foreword.prefix import Prefix
from tiny import PAD, VOCAB, random_batch, tiny_model

LENGTH = 5
TOLERANCE = 1e-4
CONTROL = 100 * TOLERANCE  # what a missing prefix or a wrong offset must differ by
BOTH = ("t5", "bart", "mbart")


def batch_of(kind: str, sizes: tuple[int, ...] = (9, 6)) -> dict[str, torch.Tensor]:
    """Random rows, padded on the right; for an encoder–decoder also what its decoder reads."""
    batch = random_batch(list(sizes))
    if kind in BOTH:
        batch["decoder_input_ids"] = random_batch([6] * len(sizes), seed=3)["input_ids"]
    return batch


def task_of(kind: str) -> str:
    return "SEQ_2_SEQ_LM" if kind in BOTH else "CAUSAL_LM"


def trained_adapter(kind: str, config: Any, folder: Path, steps: int = 3, **changes: Any) -> Any:
    """Train an adapter on a tiny model of `kind`, save it, and return the PEFT model in eval mode."""
    from peft import get_peft_model

    torch.manual_seed(7)
    model = get_peft_model(tiny_model(kind, **changes), config)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=0.05)
    batch = batch_of(kind)
    labels = batch.get("decoder_input_ids", batch["input_ids"])
    labels = labels.masked_fill(labels == PAD, -100)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    assert any(not torch.equal(old, new) for old, new in zip(before, parameters, strict=True))
    model.save_pretrained(folder)
    return model.eval()


def logits_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits of real tokens, without those of a prompt in front, `[real tokens, vocabulary]`."""
    with torch.no_grad():
        logits = model(**batch).logits
    read = batch.get("decoder_input_ids", batch["input_ids"])
    mask = torch.ones_like(read) if "decoder_input_ids" in batch else batch["attention_mask"]
    return logits[:, -read.shape[1] :][mask.bool()]


def attached(base: Base, prefix: Prefix, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits of `batch` with `prefix`, whose virtual tokens are inserted in front if it has some."""
    if prefix.embeddings is None:
        with base.attach(prefix):
            return logits_of(base.model, batch)
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    inputs = base.inputs(rows, prefix)
    with base.attach(inputs.rows), torch.no_grad():
        if "decoder_input_ids" in batch:
            return logits_of(base.model, batch | inputs.tensors)
        logits = base.model(**inputs.tensors).logits
    mask = inputs.tensors["attention_mask"].bool() & (inputs.tensors["input_ids"] < VOCAB)
    return logits[mask]


def difference(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max())
