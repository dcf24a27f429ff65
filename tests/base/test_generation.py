"""`Base.generate`: the same answers whatever else is in the batch, each row rendered as its prefix was trained."""

from __future__ import annotations

import pytest

import foreword
from foreword.errors import BatchMismatchError, ConfigError, PrefixFormatError, UnsupportedModelError
from tiny import tiny_base, trained_like
from training_helpers import settings, write_rows

PROMPTS = ["a", "some longer prompt", "mid size", "xy"]


def test_mixed_rows_equal_single_calls() -> None:
    base = tiny_base()
    a, b = trained_like(base, 5, seed=1), trained_like(base, 9, seed=2)
    rows = [a, b, None, a]
    together = base.generate(PROMPTS, rows, max_new_tokens=6)
    apart = [base.generate([prompt], row, max_new_tokens=6)[0] for prompt, row in zip(PROMPTS, rows, strict=True)]
    assert together == apart
    assert base.generate(PROMPTS, rows, max_new_tokens=6, batch_size=2) == apart
    assert together != base.generate(PROMPTS, max_new_tokens=6)


def test_each_row_uses_its_prefix_template() -> None:
    base = tiny_base()
    prefix = trained_like(base, 5).with_record("direct", {"template": "Q: {input}\nA:"})
    expected = base.generate(["Q: hello\nA:"], prefix, template="{input}", max_new_tokens=6)
    assert base.generate(["hello"], prefix, max_new_tokens=6) == expected
    assert base.generate(["hello"], prefix, template="{input}", max_new_tokens=6) != expected


def test_progress_counts_prompts() -> None:
    counts: list[int] = []
    tiny_base().generate(PROMPTS, batch_size=3, max_new_tokens=2, progress=counts.append)
    assert counts == [3, 1]


def test_wrong_calls() -> None:
    base = tiny_base()
    with pytest.raises(BatchMismatchError, match="4 prompts, but 1 prefixes"):
        base.generate(PROMPTS, [None])
    with pytest.raises(ConfigError, match="a single text"):
        base.generate(PROMPTS, template="{input} {other}")
    with pytest.raises(ConfigError, match="num_return_sequences"):
        base.generate(PROMPTS, num_return_sequences=2, num_beams=2)
    assert base.generate([]) == []


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_answers_each_prompt_as_alone(kind) -> None:
    base = tiny_base(kind)
    a, b = trained_like(base, 6, seed=1, noise=2.0), trained_like(base, 9, seed=2, noise=2.0)
    prompts, rows = ["one", "a longer second prompt", "three"], [a, None, b]
    together = base.generate(prompts, rows, max_new_tokens=20)
    alone = [base.generate([prompt], row, max_new_tokens=20)[0] for prompt, row in zip(prompts, rows, strict=True)]
    assert together == alone
    assert any(together)
    assert together != base.generate(prompts, None, max_new_tokens=20)


def test_what_is_no_decoder_says_so(tmp_path) -> None:
    with pytest.raises(ConfigError, match="generates nothing"):
        tiny_base("bert").generate(["x"])
    for kind in ("bert", "whisper"):
        with pytest.raises(UnsupportedModelError, match="language modelling needs a decoder"):
            foreword.train(tiny_base(kind), settings(write_rows(tmp_path)))
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("prompts", "template", "field"),
    [
        (["a", "b\ud800"], None, r"prompts\[1\]"),
        (["a", "b"], "{input}\udcff", "template"),
        (["a", 3], None, r"prompts\[1\]"),
    ],
)
def test_what_no_tokenizer_reads_is_named(prompts, template, field) -> None:
    with pytest.raises(ConfigError, match=field):
        tiny_base().generate(prompts, template=template)


@pytest.mark.parametrize("template", [3, "\ud800{input}"])
def test_a_template_in_a_record_that_is_no_text(template) -> None:
    prefix = trained_like(tiny_base(), 3).with_record("direct", {"template": template})
    with pytest.raises(PrefixFormatError, match="template"):
        tiny_base().generate(["a"], prefix)
