"""Generated tokens equal the reference's in every mode of generation the plain base has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foreword.errors import AttachError
from parity_helpers import NEW, generate, make_batch
from tiny import BOTH, CASES, DECODERS, EOS, PAD, VARIANTS, case_name, tiny_base, tiny_model, trained_like

OPTIONS: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "no cache": {"use_cache": False},
    "static": {"cache_implementation": "static"},
    "beam search": {"num_beams": 3},
    "beams returned": {"num_beams": 4, "num_return_sequences": 2},
    "samples": {"do_sample": True, "num_return_sequences": 2, "temperature": 1.5},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "assisted": {"assistant_model": "other"},
}
COLUMN = {"dynamic": "dynamic cache", "static": "static cache"}
GENERATING = [case for case in CASES if case[0] in DECODERS + BOTH]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("case", GENERATING, ids=case_name)
def test_generation_equals_the_reference(case, options, matrix) -> None:
    """For one prefix and for mixed rows, wherever the plain base can do it."""
    kind, changes = case[0], VARIANTS.get(case, {})
    settings = ({"use_cache": True} if kind == "mpt" else {}) | OPTIONS[options]  # its config says no cache
    single = options in ("prompt lookup", "assisted")  # Transformers takes one row there
    base = tiny_base(kind, **changes)
    if "assistant_model" in settings:
        settings["assistant_model"] = tiny_model(kind, seed=5, **changes)
    batch = make_batch(base, [5] if single else [12, 7, 10], "left" if kind in DECODERS else "right")
    batch = {name: value for name, value in batch.items() if not name.startswith("decoder_")}
    record = (lambda value: matrix(COLUMN[options], value)) if options in COLUMN else (lambda value: None)
    a, b = trained_like(base, 6, seed=1), trained_like(base, 9, seed=2)

    def tokens(prefix, backend="auto"):
        torch.manual_seed(11)
        return generate(base, prefix, batch, backend, **settings)

    try:
        torch.manual_seed(11)
        base.model.generate(**batch, max_new_tokens=NEW, pad_token_id=PAD, eos_token_id=EOS, **settings)
    except (ValueError, RuntimeError, NotImplementedError, AttributeError, IndexError, TypeError) as error:
        record("no: the plain base has none")
        pytest.skip(f"the plain base can't: {error}")
    cached = base.model_slots.route == "cache"
    if cached and options == "static":
        with pytest.raises(AttachError, match="dynamic cache"):
            tokens(a)
        record("no: AttachError")
        return
    for prefix in (a,) if single else (a, [a, None, b]):
        fast = tokens(prefix)
        slow = generate_without_cache(base, prefix, batch, settings) if cached else tokens(prefix, "reference")
        assert torch.equal(fast, slow)
        assert not torch.equal(fast, tokens(None))
    record("yes")


def generate_without_cache(base, prefix, batch, settings) -> torch.Tensor:
    """The reference of the cache route: the whole sequence again for each token, so no cache is ever shown."""
    torch.manual_seed(11)
    settings = {
        name: value for name, value in settings.items() if name not in ("prompt_lookup_num_tokens", "assistant_model")
    }
    return generate(base, prefix, batch, **(settings | {"use_cache": False}))
