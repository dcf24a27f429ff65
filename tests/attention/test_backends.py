"""One attention call at a time: every backend against the reference, and what is refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from foreword.attach.attachment import Attachment
from foreword.attention import backends
from foreword.attention.call import AttentionCall, MaskCache, normalise
from foreword.attention.merge import fold, fold_lse, two_part_attention, unfold
from foreword.attention.reference import reference_attention
from foreword.attention.sharing import RowMap
from foreword.base import Base
from foreword.errors import AttachError, AttentionArgumentError, BatchMismatchError, PositionError
from foreword.prefix import KV
from sharing_helpers import shared_of
from tiny import random_batch, relative, tiny_base, tiny_model, trained_like

TOLERANCE = 1e-5


def make_call(n=6, t=6, heads=4, kv=2, width=8, value_width=None, dtype=torch.float32, mask=None, **more):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return (2 * torch.randn(*shape, generator=generator)).to(dtype).requires_grad_()

    query, key = draw(3, heads, n, width), draw(3, kv, t, width)
    value = draw(3, kv, t, value_width or width)
    module: Any = torch.nn.Module()
    module.is_causal = True
    return normalise(
        module,
        query,
        key,
        value,
        mask,
        0.4,
        more.pop("dropout", 0.0),
        None,
        more.pop("softcap", None),
        more,
        MaskCache(),
    )


def make_prefix(length=5, kv=2, width=8, value_width=None, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(kv, length, width), (kv, length, value_width or width)]
    return KV(*((2 * torch.randn(*shape, generator=generator)).to(dtype).requires_grad_() for shape in shapes))


def left_padded(n: int, hidden: int) -> torch.Tensor:
    """Boolean `[3, 1, n, n]`; row 1 has `hidden` padded positions, whose own queries see nothing."""
    mask = torch.ones(n, n, dtype=torch.bool).tril().expand(3, 1, n, n).clone()
    mask[1, :, :, :hidden] = False
    return mask


CALLS: dict[str, dict[str, Any]] = {
    "causal": {},
    "decoding": {"n": 1, "t": 9},
    "padded": {"mask": left_padded(6, 3)},
    "float mask": {"mask": torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(4))},
    "softcap": {"softcap": 3.0},
    "MLA widths": {"value_width": 4},
    "wider values": {"value_width": 16},
    "multi-query": {"kv": 1},
    "sinks": {"s_aux": torch.tensor([0.5, 2.0, -1.0, 4.0]).requires_grad_()},
    "sinks, padded": {"s_aux": torch.tensor([0.5, 2.0, -1.0, 4.0]).requires_grad_(), "mask": left_padded(6, 3)},
    "bias": {"position_bias": torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(5))},
    "bias, padded": {
        "position_bias": torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(5)),
        "mask": left_padded(6, 3),
    },
    "learned bias": {
        "position_bias": torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(5), requires_grad=True)
    },
    "no groups": {"kv": 4},
    "float64": {"dtype": torch.float64},
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("assignment", [[0], [0, None, 1], [None], [1, 0, 1]])
def test_two_parts_equal_concatenation(name, assignment) -> None:
    settings = dict(CALLS[name])
    shape = {key: settings[key] for key in ("kv", "value_width", "dtype") if key in settings}
    call, prefixes = make_call(**settings), [make_prefix(5, **shape), make_prefix(3, seed=2, **shape)]
    rows = RowMap(assignment)
    expected = reference_attention(call, [None if p is None else prefixes[p] for p in rows.expand(3)])
    inputs = [call.query, call.key, call.value, *prefixes[0], *prefixes[1]]
    inputs += [
        settings[name] for name in ("s_aux", "position_bias") if name in settings and settings[name].requires_grad
    ]
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7)).to(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs, allow_unused=True)
    groups = rows.groups(3)
    kvs, tokens = [prefixes[prefix] for prefix in groups], call.query.shape[2]
    shared = shared_of(list(groups.values()), kvs, 3, tokens) if groups else None
    for flash in {backends.choose(call), None}:
        output = two_part_attention(call, shared, flash)
        assert relative(output, expected) < TOLERANCE
        found = torch.autograd.grad((output * weight).sum(), inputs, allow_unused=True)
        for one, other in zip(found, wanted, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                assert torch.isfinite(one).all()
                assert relative(one, other) < TOLERANCE
    if any(entry is not None for entry in assignment):
        assert relative(two_part_attention(call, None, None), expected) > 100 * TOLERANCE


def test_which_backend_is_chosen() -> None:
    assert backends.choose(make_call()) is backends.FLASH_CPU
    assert backends.choose(make_call(mask=left_padded(6, 2))) is backends.FLASH_CPU
    assert backends.choose(make_call(value_width=4)) is backends.FLASH_CPU  # padded to one width
    bias = torch.zeros(1, 4, 6, 6, requires_grad=True) * 2
    assert backends.choose(make_call(position_bias=bias)) is None  # no kernel gives the bias a gradient
    assert backends.choose(make_call(position_bias=bias.detach())) is backends.FLASH_CPU
    for settings in ({"softcap": 3.0}, {"dropout": 0.5}):
        assert backends.choose(make_call(**settings)) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype) -> None:
    call, prefix = make_call(dtype=dtype), make_prefix(5)
    output = two_part_attention(call, shared_of([None], [prefix], 3, call.query.shape[2]), backends.choose(call))
    exact = make_call()
    assert output.dtype == dtype
    assert relative(output, reference_attention(exact, [prefix] * 3)) < 2e-2
    output.float().sum().backward()
    assert prefix.key.grad is not None
    assert prefix.key.grad.dtype == torch.float32


def test_dropout_is_honoured_and_unbiased() -> None:
    call, prefix = make_call(dropout=0.3), make_prefix(5)
    with torch.no_grad():
        exact = reference_attention(make_call(), [prefix] * 3)
        torch.manual_seed(0)
        draws = torch.stack(
            [two_part_attention(call, shared_of([None], [prefix], 3, call.query.shape[2]), None) for _ in range(3000)]
        )
        reference = torch.stack([reference_attention(call, [prefix] * 3) for _ in range(3000)])
    assert not torch.equal(draws[0], draws[1])
    assert relative(draws.mean(0), exact) < 0.03
    assert relative(draws.std(0), reference.std(0)) < 0.05


def test_an_empty_prefix_is_none() -> None:
    call = make_call()
    base = tiny_base()
    whole = trained_like(base, 4)
    slots = {name: KV(key[:, :0], value[:, :0]) for name, (key, value) in whole.slots.items()}
    attachment = Attachment([replace(whole, slots=slots)], next(base.model.parameters()))
    assert torch.equal(attachment.run("decoder.0", call), two_part_attention(call, None, backends.FLASH_CPU))


def test_folding_is_undone_and_free_in_the_models_layout() -> None:
    query = torch.randn(3, 6, 4, 8).transpose(1, 2)  # [B, H, n, d] over [B, n, H, d] memory, as models make it
    assert fold(query).data_ptr() == query.data_ptr()
    assert torch.equal(unfold(fold(query), 3), query)
    lse = torch.randn(3, 4, 6)
    assert torch.equal(fold_lse(lse), fold(lse.unsqueeze(-1)).squeeze(-1))


def test_row_map() -> None:
    rows = RowMap([1, None, 0])
    assert rows.expand(6) == [1, 1, None, None, 0, 0]
    assert list(rows.groups(6).items()) == [(1, (0, 1)), (0, (4, 5))]
    index = rows.index(0, 6, torch.device("cpu"))
    assert index is not None
    assert index.tolist() == [4, 5]
    assert RowMap([0]).groups(4) == {0: None}
    assert RowMap([0]).index(0, 4, torch.device("cpu")) is None
    with pytest.raises(BatchMismatchError, match="3 prefixes"):
        rows.expand(4)


@pytest.mark.parametrize("name", ["head_mask", "cu_seq_lens_q"])
def test_arguments_that_would_be_dropped_are_refused(name) -> None:
    with pytest.raises(AttentionArgumentError, match=name):
        make_call(**{name: torch.zeros(4)})


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_output_attentions_is_refused(kind) -> None:
    base = tiny_base(kind)
    with (
        base.attach(trained_like(base, 3)),
        pytest.raises((AttentionArgumentError, ValueError), match="output_attentions"),
    ):
        base.model(**random_batch([4]), output_attentions=True)


def test_wrong_backend_name() -> None:
    base = tiny_base()
    with pytest.raises(AttachError, match="backend must be one of"), base.attach(None, backend="cuda"):
        pass


def test_gpt2_beyond_its_positions() -> None:
    base = tiny_base("gpt2", max_position_embeddings=32)
    prefix = trained_like(base, 20)
    with base.attach(prefix):
        assert base.model(**random_batch([12])).logits.shape[1] == 12
        with pytest.raises(PositionError, match=r"position 32 .*offset 20.* 0 to 31"):
            base.model(**random_batch([13]))
        # padding takes no positions, on either side
        assert base.model(**random_batch([12, 12], "left")).logits.shape[1] == 12


def test_attention_dropout_of_a_model_in_train_mode_is_seen() -> None:
    base = Base(tiny_model("llama", attention_dropout=0.5), name="dropout")
    prefix, batch = trained_like(base, 4), random_batch([8])
    base.model.train()
    with base.attach(prefix):
        one, two = base.model(**batch, use_cache=False).logits, base.model(**batch, use_cache=False).logits
    assert not torch.equal(one, two)


def test_call_is_immutable() -> None:
    with pytest.raises(AttributeError):
        make_call().scale = 2.0
    assert isinstance(make_call(), AttentionCall)
