"""Padding and company in the batch change no answer."""

from __future__ import annotations

import pytest
import torch

from parity_helpers import CONTROL, TOLERANCE, generate, make_batch, outputs, real, row_of, run
from tiny import CASES, DECODERS, PAD, VARIANTS, VISION, case_name, relative, tiny_base, trained_like

SIZES = [3 + (5 * index) % 14 for index in range(20)]


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_padding_changes_no_token(case, matrix) -> None:
    """Decoders: 20 prompts left-padded in one batch, alone, and teacher-forced in one right-padded forward."""
    kind = case[0]
    base = tiny_base(kind, **VARIANTS.get(case, {}))
    if kind not in DECODERS:
        matrix("padding", _padding_of_outputs(base, kind))
        return
    prefix = trained_like(base, 6)
    left = make_batch(base, SIZES, "left")
    width = left["input_ids"].shape[1]
    together = generate(base, prefix, left)[:, width:]
    sequences = []
    for row, size in enumerate(SIZES):
        prompt = left["input_ids"][row : row + 1, width - size :]
        alone = generate(base, prefix, {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)})
        assert alone[0, size:].tolist() == together[row].tolist()[: len(alone[0]) - size]
        sequences.append(alone[0])
    padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=PAD)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    mask = (torch.arange(padded.shape[1])[None] < lengths[:, None]).long()
    with torch.no_grad():
        chosen = run(base, prefix, {"input_ids": padded, "attention_mask": mask}).argmax(-1)
    for row, size in enumerate(SIZES):
        assert chosen[row, size - 1 : lengths[row] - 1].tolist() == sequences[row][size:].tolist()
    plain = generate(base, None, left)[:, width:]
    assert not torch.equal(plain, together), "the prefix makes no difference, so this test could not fail"
    matrix("padding", "yes")


def _padding_of_outputs(base, kind) -> str:
    """Encoders and encoder–decoders: each of 20 right-padded rows equals itself alone."""
    if kind in VISION:
        return "no padding"
    prefix, batch = trained_like(base, 6), make_batch(base, SIZES)
    with torch.no_grad():
        together = run(base, prefix, batch)
        plain = run(base, None, batch)
        mask = batch["decoder_attention_mask" if "decoder_attention_mask" in batch else "attention_mask"].bool()
        for row in range(len(SIZES)):
            alone = run(base, prefix, row_of(batch, row))
            assert relative(together[row][mask[row]], alone[0]) < TOLERANCE
    assert relative(together[mask], plain[mask]) > CONTROL
    return "yes"


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_mixed_rows_equal_separate_runs(case, matrix) -> None:
    kind = case[0]
    base = tiny_base(kind, **VARIANTS.get(case, {}))
    a, b = trained_like(base, 5, seed=1, grad=True), trained_like(base, 17, seed=2, grad=True)
    side = "left" if kind in DECODERS else "right"
    rows, batch = [a, b, None, a], make_batch(base, [9, 12, 7, 10], side)
    tensors = [part for prefix in (a, b) for kv in prefix.slots.values() for part in kv]
    for backend in ("auto",) if base.model_slots.route == "cache" else ("auto", "math"):
        values = run(base, rows, batch, backend)
        weight = torch.randn(values.shape, generator=torch.Generator().manual_seed(3))
        singles = [row_of(batch, row) for row in range(4)]
        together = torch.autograd.grad(real(values * weight, batch).sum(), tensors)
        apart = [torch.zeros_like(tensor) for tensor in tensors]
        for row, prefix in enumerate(rows):
            kept = _kept(batch, row, values)
            if prefix is None:  # the plain base in the same batch, with its own way of counting positions
                assert relative(values[row][kept], outputs(base.model, batch)[row][kept]) < TOLERANCE
                assert relative(run(base, None, singles[row], backend), outputs(base.model, singles[row])) < TOLERANCE
                continue
            own = run(base, prefix, singles[row], backend)
            assert relative(values[row][kept], own[0]) < TOLERANCE
            found = torch.autograd.grad((own[0] * weight[row][kept]).sum(), tensors, allow_unused=True)
            apart = [total if part is None else total + part for total, part in zip(apart, found, strict=True)]
        for one, other in zip(together, apart, strict=True):
            assert relative(one, other) < TOLERANCE
        kept = _kept(batch, 1, values)
        assert relative(run(base, [a, a, None, a], batch, backend)[1][kept], values[1][kept]) > CONTROL
    matrix("mixed rows", "yes")


def _kept(batch, row, values) -> torch.Tensor:
    mask = batch.get("decoder_attention_mask", batch.get("attention_mask"))
    return torch.ones(values.shape[1], dtype=torch.bool) if mask is None else mask[row].bool()
