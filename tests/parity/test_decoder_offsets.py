"""The offset of a prefix in an encoder–decoder: BART's decoder tokens move up, T5's prefix keys get the position bias.

The reference is plain Transformers with the prefix in the decoder's cache, at positions 0 to m − 1. An offset o above m
is a cache of o tokens there, of which the mask hides the last o − m.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache, EncoderDecoderCache

from foreword.errors import PositionError
from foreword.prefix import Prefix
from parity_helpers import (
    CONTROL,
    TOLERANCE,
    eager_with,
    enable_checkpointing,
    generate,
    gradients,
    make_batch,
    only,
    outputs,
    real,
    row_of,
    run,
    without_offset,
)  # fmt: skip
from tiny import random_batch, relative, tiny_base, trained_like

KINDS = ("t5", "bart", "mbart")
BACKENDS = ("auto", "math", "reference")
SIZES = [12, 5, 9]


def made(base, length: int, offset: int, seed: int = 1, grad: bool = False) -> Prefix:
    prefix = only(trained_like(base, length, seed, grad=grad), "decoder")
    return replace(prefix, position_offset=offset)


def run_in_cache(base, prefix: Prefix, batch) -> torch.Tensor:
    """Logits of plain Transformers with `prefix` in the decoder's cache."""
    rows, hidden = len(batch["input_ids"]), prefix.position_offset - prefix.length
    own = DynamicCache(config=base.model.config.get_text_config(decoder=True))
    for layer, kv in enumerate(prefix.slots.values()):
        own.update(*(F.pad(part, (0, 0, 0, hidden))[None].expand(rows, -1, -1, -1) for part in kv), layer)
    visible = (torch.arange(prefix.position_offset) < prefix.length).long().expand(rows, -1)
    mask = torch.cat([visible, batch["decoder_attention_mask"]], 1)
    cache = EncoderDecoderCache(own, DynamicCache())
    return base.model(**batch | {"decoder_attention_mask": mask}, past_key_values=cache).logits


@pytest.mark.parametrize("offset", [7, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_decoders_cache(kind, offset) -> None:
    base = tiny_base(kind)
    prefix, batch = made(base, 7, offset, grad=True), make_batch(base, SIZES)
    expected = run_in_cache(base, prefix, batch)
    expected_gradients = gradients(expected, batch, prefix)
    expected = real(expected, batch)
    for backend in BACKENDS:
        values = run(base, prefix, batch, backend)
        assert relative(real(values, batch), expected) < TOLERANCE
        assert relative(gradients(values, batch, prefix), expected_gradients) < TOLERANCE
        with torch.no_grad():
            assert relative(real(run(base, prefix, batch, backend), batch), expected) < TOLERANCE
    for wrong in (without_offset(prefix), replace(prefix, position_offset=47 - offset), None):
        assert relative(real(run(base, wrong, batch), batch), expected) > CONTROL


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_and_cross_attention_stay_without(kind) -> None:
    """No bias reaches their prefixes, and the encoder's tokens stay where they are."""
    base = tiny_base(kind)
    batch, whole = make_batch(base, SIZES), trained_like(base, 7)
    others = Prefix({name: kv for name, kv in whole.slots.items() if not name.startswith("decoder")}, 0, whole.base)
    with eager_with(base, others):
        expected = real(run_in_cache(base, made(base, 7, 7), batch), batch)
    for backend in BACKENDS:
        values = run(base, replace(whole, position_offset=7), batch, backend)
        assert relative(real(values, batch), expected) < TOLERANCE
    assert relative(real(run(base, whole, batch), batch), expected) > CONTROL
    assert relative(real(run(base, made(base, 7, 7), batch), batch), expected) > CONTROL


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_different_offsets(kind, backend) -> None:
    base = tiny_base(kind)
    rows = [made(base, 7, 7), None, made(base, 7, 0, seed=2), made(base, 3, 20, seed=3), made(base, 7, 7, seed=4)]
    batch = make_batch(base, [12, 5, 9, 7, 8])
    values, moved = run(base, rows, batch, backend), run(base, [row and without_offset(row) for row in rows], batch)
    for row, prefix in enumerate(rows):
        single = row_of(batch, row)
        alone = run(base, prefix, single, backend)[0]
        assert relative(values[row, : len(alone)], alone) < TOLERANCE
        shifted = prefix is not None and prefix.position_offset > 0
        assert (relative(moved[row, : len(alone)], alone) > CONTROL) == shifted
    assert torch.equal(run(base, None, batch), outputs(base.model, batch))


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_with_a_cache(kind) -> None:
    base = tiny_base(kind)
    rows, prompts = [made(base, 7, 7), None, made(base, 3, 20, seed=3)], random_batch(SIZES)
    found = generate(base, rows, prompts)
    assert torch.equal(found, generate(base, rows, prompts, use_cache=False))
    assert torch.equal(found, generate(base, rows, prompts, backend="reference"))
    assert not torch.equal(found, generate(base, None, prompts))
    beams = generate(base, rows, prompts, num_beams=3)
    for row, prefix in enumerate(rows):
        alone = generate(base, prefix, row_of(prompts, row), num_beams=3, use_cache=False)[0]
        assert torch.equal(beams[row, : len(alone)], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_one_token(kind) -> None:
    """Logits of every step with a cache equal those of one call."""
    base = tiny_base(kind)
    rows, batch = [made(base, 7, 7), made(base, 3, 20, seed=3)], make_batch(base, [7, 11])
    ids, cache, found = batch.pop("decoder_input_ids"), None, []
    del batch["decoder_attention_mask"]
    expected = run(base, rows, batch | {"decoder_input_ids": ids})
    with torch.no_grad(), base.attach(rows):
        for step in range(ids.shape[1]):
            one = ids[:, step : step + 1]
            result = base.model(**batch, decoder_input_ids=one, past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            found.append(result.logits)
    assert relative(torch.cat(found, 1), expected) < TOLERANCE
    wrong = run(base, [without_offset(row) for row in rows], batch | {"decoder_input_ids": ids})
    assert relative(wrong[:, -1], expected[:, -1]) > CONTROL


@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing(kind) -> None:
    base = tiny_base(kind)
    prefix, batch = made(base, 7, 7, grad=True), make_batch(base, SIZES)
    expected = gradients(run(base, prefix, batch), batch, prefix)
    enable_checkpointing(base.model, reentrant=False)
    with base.attach(prefix):
        values = outputs(base.model, batch)
    assert relative(gradients(values, batch, prefix), expected) < TOLERANCE


def test_the_end_of_barts_table() -> None:
    base = tiny_base("bart")
    prefix = made(base, 5, 250)
    batch = random_batch([256]) | {"decoder_input_ids": torch.full((1, 6), 9)}
    assert run(base, prefix, batch).isfinite().all()
    with pytest.raises(PositionError, match=r"position 256 .*offset 250 included.*0 to 255"):
        run(base, prefix, batch | {"decoder_input_ids": torch.full((1, 7), 9)})


def test_in_t5_only_keys_within_the_softmax_have_a_place() -> None:
    base = tiny_base("t5")
    whole = trained_like(base, 4)
    gated = replace(
        whole, merge="gated", position_offset=4, extras={f"{name}.gate": torch.zeros(4) for name in whole.slots}
    )
    with pytest.raises(PositionError, match="prefixes of merge 'gated' have offset 0"), base.attach(gated):
        pass
    with base.attach(replace(gated, position_offset=0)):
        pass
