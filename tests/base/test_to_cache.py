"""A prefix as a cache of Transformers gives what attach gives, for every decoder, or is refused with the reason."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from foreword.base import Base
from foreword.errors import ConfigError, ExportError, PrefixMismatchError, WindowWarning
from foreword.prefix import KV, Prefix
from method_cases import CASES as METHODS
from method_cases import case_id, moved, producer_of
from tiny import DECODERS, HYBRIDS, VARIANTS, relative, tiny_base, trained_like

LENGTH = 5
COUNTED = ("bloom", "mpt")  # they count positions by their cache
REFUSED = {
    **dict.fromkeys(("gemma4_text", *HYBRIDS), "every layer"), "deepseek_v3": "differ in width",
    "falcon_h1": None,  # attention in every layer, and recurrent states that start empty either way
}  # fmt: skip


def cache_of(prefix: Prefix, base: Base, rows: int = 1) -> Any:
    """The cache; a base with windows warns, one without does not."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cache = prefix.to_cache(base, batch_size=rows)
    windows = any(slot.sliding_window is not None for slot in base.slots)
    assert [entry.category for entry in caught] == [WindowWarning] * windows
    return cache


def with_cache(prefix: Prefix, base: Base, ids: torch.Tensor) -> torch.Tensor:
    """Logits of Transformers alone."""
    rows, count = ids.shape
    positions = torch.arange(prefix.length, prefix.length + count)[None].expand(rows, -1)
    given = {} if base.model.config.model_type in COUNTED else {"position_ids": positions}
    mask = torch.ones(rows, prefix.length + count, dtype=torch.long)
    cache = cache_of(prefix, base, rows)
    logits: torch.Tensor = base.model(ids, past_key_values=cache, attention_mask=mask, **given).logits
    return logits


def with_attach(prefix: Prefix, base: Base, ids: torch.Tensor) -> torch.Tensor:
    with base.attach(prefix):
        logits: torch.Tensor = base.model(ids).logits
    return logits


@pytest.mark.parametrize("kind", DECODERS)
def test_a_cache_gives_what_attach_gives_or_is_refused(kind) -> None:
    base = tiny_base(kind)
    prefix = trained_like(base, LENGTH)
    if (reason := REFUSED.get(kind)) is not None:
        with pytest.raises(ExportError, match=reason):
            prefix.to_cache(base)
        return
    ids = torch.tensor([[5, 9, 11, 4, 80], [7, 3, 200, 12, 6]])
    expected = with_attach(prefix, base, ids)
    assert relative(with_cache(prefix, base, ids), expected) < 1e-5
    assert relative(base.model(ids).logits, expected) > 1e-3, "without the prefix the result is another"


WINDOWS = [case for case in VARIANTS if case[1] == "window8" and case[0] in DECODERS and not REFUSED.get(case[0])]


@pytest.mark.parametrize("case", WINDOWS, ids="-".join)
def test_windows_hold_as_long_as_prefix_and_tokens_fit_them(case) -> None:
    base = tiny_base(case[0], **VARIANTS[case])
    prefix = trained_like(base, LENGTH)
    fits, too_long = torch.tensor([[5, 9, 11]]), torch.tensor([[5, 9, 11, 4, 80, 33]])
    assert relative(with_cache(prefix, base, fits), with_attach(prefix, base, fits)) < 1e-5
    assert relative(with_cache(prefix, base, too_long), with_attach(prefix, base, too_long)) > 0.1, "as the text says"
    with pytest.warns(WindowWarning, match="windows of 8 tokens: once prefix and tokens are more"):
        prefix.to_cache(base)
    with pytest.raises(ExportError, match=r"8 virtual tokens, and .* has a window of 8"):
        trained_like(base, 8).to_cache(base)


def test_a_cache_is_new_each_time_and_has_no_gradients() -> None:
    base = tiny_base()
    prefix = trained_like(base, LENGTH, grad=True)
    first = prefix.to_cache(base)
    base.model(torch.tensor([[5, 9]]), past_key_values=first)
    second = base.prefix_to_cache(prefix, batch_size=3)
    assert (first.get_seq_length(), second.get_seq_length()) == (LENGTH + 2, LENGTH)
    assert second.layers[0].keys.shape[0] == 3
    assert not second.layers[0].keys.requires_grad


@pytest.mark.smollm2
def test_the_documented_lines_generate_what_attach_generates(smollm2) -> None:
    """The example of `Base.prefix_to_cache`, on the real model."""
    prefix = Prefix.from_text("Answer in French.\n", smollm2)
    question = smollm2.tokenizer("Question: What colour is the sky?\nAnswer:")["input_ids"]
    cache = prefix.to_cache(smollm2)
    ids = torch.tensor([[0] * cache.get_seq_length() + question])
    greedy = {"max_new_tokens": 8, "do_sample": False}
    found = smollm2.model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **greedy)
    with smollm2.attach(prefix):
        tokens = torch.tensor([question])
        expected = smollm2.model.generate(tokens, attention_mask=torch.ones_like(tokens), **greedy)
    assert found[0, ids.shape[1] :].tolist() == expected[0, len(question) :].tolist()


@pytest.mark.parametrize("case", METHODS, ids=case_id)
def test_what_is_no_keys_and_values_is_refused(case) -> None:
    base = tiny_base()
    prefix = moved(producer_of(base, case)).finish()
    if prefix.kind.is_cache:
        assert prefix.to_cache(base).get_seq_length() == prefix.length
    else:
        with pytest.raises(ExportError, match="the prefix can't be a cache: it is "):
            prefix.to_cache(base)


def test_other_prefixes_and_bases_are_refused() -> None:
    base = tiny_base()
    prefix = trained_like(base, LENGTH)
    first = next(iter(prefix.slots))
    shorter = dict(prefix.slots) | {first: KV(*(part[:, :3] for part in prefix.slots[first]))}
    fewer = {name: kv for name, kv in prefix.slots.items() if name != first}
    for wrong, reason in (
        (replace(prefix, slots=shorter), "as many tokens in every layer"),
        (replace(prefix, slots=fewer), "every layer of a decoder"),
        (replace(prefix, position_offset=3), "position_offset 3"),
    ):
        with pytest.raises(ExportError, match=reason):
            wrong.to_cache(base)
    with pytest.raises(PrefixMismatchError):
        prefix.to_cache(tiny_base("gpt2"))
    with pytest.raises(ConfigError, match="batch_size: must be 1 or more"):
        prefix.to_cache(base, batch_size=0)
    for kind in ("bert", "t5"):
        other = tiny_base(kind)
        with pytest.raises(ExportError):
            trained_like(other, LENGTH).to_cache(other)
