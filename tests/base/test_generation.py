"""`Base.generate`: the same answers whatever else is in the batch, each row rendered as its prefix was trained."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import foreword
from foreword.base.asking import prepare
from foreword.base.rendering import template_digest
from foreword.errors import (
    BatchMismatchError,
    ChatTemplateWarning,
    ConfigError,
    PrefixFormatError,
    UnsupportedModelError,
)
from foreword.tasks import make_task, settings_of
from rows_helpers import item_of
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


USER, ASSISTANT = "user", "assistant"
TALK = [{"role": USER, "content": "hello"}]


@pytest.mark.parametrize(
    "question",
    [
        TALK,
        [*TALK, {"role": ASSISTANT, "content": "the answer of the row"}],
        {"messages": TALK},
        {"messages": [*TALK, {"role": ASSISTANT, "content": "the answer of the row"}]},
        {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "x"}]},
        {"prompt": "hello", "completion": "x"},
        {"prompt": TALK, "completion": [{"role": ASSISTANT, "content": "x"}]},
        {"instruction": "hello", "input": "", "output": "x"},
        {"input": "hello"},
        {"input": "hello", "target": "x", "id": 3},
        {"text": "hello"},
        {"question": "hello", "n": 3},
    ],
)
def test_what_training_reads_can_be_asked(question) -> None:
    base = tiny_base(chat=True)
    prefix = trained_like(base, 5)
    assert base.generate([question], prefix, max_new_tokens=6) == base.generate(["hello"], prefix, max_new_tokens=6)


def test_a_conversation_is_rendered_whole() -> None:
    base = tiny_base(chat=True)
    turns = [{"role": "system", "content": "s"}, *TALK, {"role": ASSISTANT, "content": "x"}, *TALK]
    text = base.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    bare = base.generate([text], template="{input}", max_new_tokens=6)
    assert base.generate([turns], max_new_tokens=6) != base.generate(["hello"], max_new_tokens=6)
    ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert prepare(base, [turns], [None], None)[0][0] == ids
    assert bare


def test_rows_are_rendered_by_the_template_and_the_named_field() -> None:
    base = tiny_base()
    prefix = trained_like(base, 5).with_record("direct", {"template": "{title}: {question}?"})
    row = {"title": "T", "question": "Why", "answer": "So"}
    expected = base.generate(["T: Why?"], prefix, template="{input}", max_new_tokens=6)
    assert base.generate([row], prefix, max_new_tokens=6) == expected
    with pytest.raises(ConfigError, match=r"prompts\[1\]: lacks 'question', which the template"):
        base.generate([row, {"title": "T"}], prefix)
    named = trained_like(base, 5).with_record("direct", {"config": {"input_field": "question"}})
    expected = base.generate(["Why"], named, max_new_tokens=6)
    assert base.generate([row], named, max_new_tokens=6) == expected


def test_a_row_is_asked_as_training_rendered_it(tmp_path) -> None:
    """Of alpaca rows `{input}` is instruction and input together, not the field of that name."""
    row = {"instruction": "Add", "input": "1 2", "output": "3"}
    base = tiny_base()
    template = "Q: {input}\nA:"
    example = item_of(make_task(base, "lm", settings_of({"template": template})), row)
    prefix = trained_like(base, 5).with_record("direct", {"template": template})
    ((ids, _),) = prepare(base, [row], [prefix], None)
    assert tuple(ids) == example.prompt_ids
    assert example.prompt == "Q: Add\n\n1 2\nA:"


def test_another_chat_template_than_that_of_training_is_told() -> None:
    base = tiny_base(chat=True)
    known = {"shape": "messages", "turns": "all", "chat_template": template_digest(base.tokenizer)}
    record = {"template": "chat", "rendering": known}
    base.generate(["q"], trained_like(base, 5).with_record("direct", record), max_new_tokens=2)
    other = record | {"rendering": known | {"chat_template": "sha256:other"}}
    with pytest.warns(ChatTemplateWarning, match="has another chat template than the prefix was trained with"):
        base.generate(["q"], trained_like(base, 5).with_record("direct", other), max_new_tokens=2)


def test_wrong_questions_name_the_prompt() -> None:
    base = tiny_base()
    with pytest.raises(ConfigError, match=r"is one conversation; give a list of conversations"):
        base.generate(TALK)
    with pytest.raises(ConfigError, match=r"must be a list; put a text in one"):
        base.generate("hello")
    for wrong, problem in (
        ({"a": "x", "b": "y"}, "has the fields a, b; "),
        ([{"role": "boss", "content": "x"}], "role 'boss' is not known"),
        ({"input": 3}, "input"),
        ([{"role": ASSISTANT, "content": "x"}], "no message to answer"),
        ([*TALK, *TALK], "has 2 messages, but is rendered by the template"),
        ({"messages": []}, "is empty"),
    ):
        with pytest.raises(ConfigError, match=rf"prompts\[1\].*{problem}"):
            base.generate(["fine", wrong])


def test_a_stream_is_the_answer_in_pieces() -> None:
    base = tiny_base(chat=True)
    prefix = trained_like(base, 5)
    pieces = list(base.stream("hello", prefix, max_new_tokens=24))
    assert "".join(pieces).strip() == base.generate(["hello"], prefix, max_new_tokens=24)[0]
    assert "".join(base.stream(TALK, prefix, max_new_tokens=24)) == "".join(pieces)
    assert "".join(base.stream("hello", max_new_tokens=24)) != "".join(pieces)


def test_leaving_a_stream_stops_the_generation(monkeypatch) -> None:
    base, forward = tiny_base(), tiny_base().model.forward
    steps: list[int] = []

    def counted(*args: Any, **named: Any) -> Any:
        steps.append(0)
        return forward(*args, **named)

    monkeypatch.setattr(base.model, "forward", counted)
    for _ in base.stream("hello there", max_new_tokens=200, min_new_tokens=200):
        break
    assert 0 < len(steps) < 150


def test_a_failing_stream_raises() -> None:
    base = tiny_base()
    with pytest.raises(ConfigError, match=r"prompts\[0\]"):
        next(base.stream({"a": "x", "b": "y"}))
    with pytest.raises(ValueError, match="temperature"):
        list(base.stream("x", do_sample=True, temperature=-1.0))


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["messages", "role", "content", "prompt", "input", "a"]), inner, max_size=3
            )
        ),
        max_leaves=8,
    ),
    st.booleans(),
)
@hypothesis_settings(deadline=None, max_examples=150)
def test_any_question_is_rendered_or_a_typed_error(question: Any, chat: bool) -> None:
    base = tiny_base(chat=chat)
    with contextlib.suppress(ConfigError):
        ((ids, _),) = prepare(base, [question], [None], None)
        assert ids


def test_progress_counts_prompts() -> None:
    counts: list[int] = []
    tiny_base().generate(PROMPTS, batch_size=3, max_new_tokens=2, progress=counts.append)
    assert counts == [3, 1]


def test_wrong_calls() -> None:
    base = tiny_base()
    with pytest.raises(BatchMismatchError, match="4 prompts, but 1 prefixes"):
        base.generate(PROMPTS, [None])
    with pytest.raises(ConfigError, match="is one text, but the template"):
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
