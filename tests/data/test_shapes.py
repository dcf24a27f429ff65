"""Every shape of rows: a fixture, a wrong sibling with its exact error, and rows of any shape at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_templates import FAMILIES, tokenizer_of
from foreword import status
from foreword.base.rendering import Renderer
from foreword.data import Example, LmRows, Reading, RowSettings, load_items
from foreword.errors import DataError
from shape_cases import ASSISTANT, END, GOOD, LONGER, TALK, UNKNOWN, WRONG
from status_helpers import Heard
from tiny import byte_tokenizer


def reader(chat: bool = True, template: str | None = None, **settings: Any) -> LmRows:
    tokenizer = tokenizer_of(FAMILIES["Phi 4"]) if chat else byte_tokenizer()
    return LmRows(Renderer(tokenizer, template), RowSettings(**settings))


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(source: str, rows: LmRows, **reading: Any) -> tuple[Sequence[Example], list[str], list[str]]:
    """Examples, problems, and what was said."""
    heard = Heard()
    rows.start("rows.jsonl")
    with status.listening(heard):
        examples, bad = load_items(source, rows.item, Reading(**reading), rows.ahead)
        rows.finish()
    return examples, [row.problem for row in bad], heard.notes


def learned(rows: LmRows, example: Example) -> list[str]:
    found: list[list[int]] = [[]]
    for token, counts in zip(example.target_ids, example.learned or [True] * len(example.target_ids), strict=True):
        if counts:
            found[-1].append(token)
        elif found[-1]:
            found.append([])
    return [rows.renderer.tokenizer.decode(run) for run in found]


@pytest.mark.parametrize("name", GOOD)
def test_each_shape_is_recognised_and_said_in_one_line(tmp_path, name) -> None:
    row, texts, said = GOOD[name]
    rows = reader()
    (example, again), _, notes = load(write(tmp_path / "rows.jsonl", [row, row]), rows)
    assert learned(rows, example) == texts
    assert example.content == again.content
    assert notes == [f"rows.jsonl: {said}"]


@pytest.mark.parametrize("name", GOOD)
def test_each_shape_can_be_forced(tmp_path, name) -> None:
    row, texts, _ = GOOD[name]
    shape = name.partition(" ")[0]
    rows = reader(shape=shape)
    (example,), _, _ = load(write(tmp_path / "rows.jsonl", [row]), rows)
    assert learned(rows, example) == texts


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_sibling_says_what_is_wrong(tmp_path, name) -> None:
    shape, row, problem = WRONG[name]
    good = GOOD[shape][0]
    examples, problems, _ = load(write(tmp_path / "rows.jsonl", [good, good, row]), reader(), max_bad_rows=1)
    assert (len(examples), problems) == (2, [problem])


@pytest.mark.parametrize("name", UNKNOWN)
def test_rows_that_no_shape_fits_are_one_error_with_the_flag_that_helps(tmp_path, name) -> None:
    row, text = UNKNOWN[name]
    with pytest.raises(DataError) as raised:
        load(write(tmp_path / "rows.jsonl", [row] * 3), reader())
    assert str(raised.value) == f"rows.jsonl: no shape that task lm reads fits the rows. {text}{END}"


def test_rows_of_several_lengths_and_the_last_turn_only(tmp_path) -> None:
    source = write(tmp_path / "rows.jsonl", [{"messages": TALK}, {"messages": LONGER}])
    rows = reader(turns="last")
    (_, example), _, notes = load(source, rows)
    assert notes == ["rows.jsonl: messages, 2–4 turns; loss on the last assistant turn"]
    assert learned(rows, example) == ["See you<|im_end|>"]
    assert rows.renderer.tokenizer.decode(example.asked_ids).endswith("Bye<|im_end|><|im_start|>assistant<|im_sep|>")
    rows = reader()
    (_, example), _, _ = load(source, rows)
    assert rows.renderer.tokenizer.decode(example.asked_ids).endswith("Bye<|im_end|><|im_start|>assistant<|im_sep|>")
    assert (example.num_learned, example.target) == (len(b"Hello!See you") + 2, "See you")


def test_named_fields_and_templates_win_over_the_shape(tmp_path) -> None:
    row = {"title": "T", "question": "Why?", "answer": "So.", "output": "out"}
    source = write(tmp_path / "rows.jsonl", [row] * 2)
    for options, prompt, target in (
        ({"input_field": "question", "target_field": "answer"}, "Why?", "So."),
        ({"template": "{title}|{question}"}, "T|Why?", "out"),
        ({"template": "{title}|{question}", "target_field": "answer"}, "T|Why?", "So."),
    ):
        template = options.pop("template", "{question}")
        (example, _), _, _ = load(source, reader(chat=False, template=template, **options))
        assert (example.prompt, example.target) == (prompt, target)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Hi", "completion": "x"}, "Q: Hi"),
        ({"instruction": "Add", "input": "1 2", "output": "x"}, "Q: Add\n\n1 2"),
        ({"input": "Hi", "target": "x"}, "Q: Hi"),
    ],
)
def test_the_input_of_a_template_is_the_rows_whatever_the_shape_calls_it(tmp_path, row, prompt) -> None:
    (example,), _, _ = load(write(tmp_path / "rows.jsonl", [row]), reader(template="Q: {input}"))
    assert (example.prompt, example.target) == (prompt, "x")


def test_an_empty_field_of_several_is_allowed(tmp_path) -> None:
    row = {"instruction": "Add", "input": "", "output": "3"}
    source = write(tmp_path / "rows.jsonl", [row, row | {"instruction": ""}])
    examples, problems, _ = load(source, reader(template="{instruction}|{input}|"), max_bad_rows=1)
    assert [example.prompt for example in examples] == ["Add||"]
    assert problems == ["fields 'instruction', 'input' are empty"]


def test_messages_need_a_chat_template(tmp_path) -> None:
    source = write(tmp_path / "rows.jsonl", [{"messages": TALK}])
    with pytest.raises(DataError, match="this base has none: take an instruct model, or give rows of prompt and comp"):
        load(source, reader(chat=False))
    with pytest.raises(DataError, match="need the base's chat template; leave out --template"):
        load(source, reader(template="{input}"))


def test_turns_that_a_template_forgets_are_counted(tmp_path) -> None:
    said = [TALK[0], {"role": ASSISTANT, "content": "<think>x</think>"}, *LONGER[2:]]
    rows = LmRows(Renderer(tokenizer_of(FAMILIES["Qwen 3"])))
    (example,), _, notes = load(write(tmp_path / "rows.jsonl", [{"messages": said}]), rows)
    assert learned(rows, example)[-1] == "<think>\n\n</think>\n\nSee you<|im_end|>"
    assert notes[1:] == [
        "rows.jsonl: 1 earlier assistant turns are not learned, because the chat template shows them otherwise once "
        "they are history"
    ]


def test_the_same_rows_from_every_format(tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"messages": TALK, "tools": None}, {"messages": LONGER, "tools": None}]
    expected = [example.content for example in load(write(tmp_path / "rows.jsonl", rows), reader())[0]]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with (tmp_path / "rows.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerows([["messages"], *([json.dumps(row["messages"])] for row in rows)])
    for kind in ("json", "parquet", "csv"):
        found, _, _ = load(str(tmp_path / f"rows.{kind}"), reader())
        assert [example.content for example in found] == expected, kind


LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["user", "gpt", "Hi"])
NAMES = (
    "messages conversations prompt completion instruction input output target references text label role content from "
    "value tools system chosen tool_calls thinking"
)
KEYS = st.sampled_from(NAMES.split(" ")) | st.text(max_size=3)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
ROWS = st.lists(st.dictionaries(KEYS, ANYTHING, max_size=5), min_size=1, max_size=4)


@pytest.mark.parametrize("chat", [False, True])
@given(rows=ROWS, shape=st.sampled_from(["auto", *{name.partition(" ")[0] for name in GOOD}]), last=st.booleans())
@settings(deadline=None, max_examples=150)
def test_rows_of_any_shape_are_examples_bad_rows_or_a_data_error(chat, rows, shape, last) -> None:
    made = reader(chat=chat, shape=shape, turns="last" if last else "all")
    made.start("rows")
    try:
        made.ahead(rows)
    except DataError:
        return
    for fields in rows:
        item = made.item(fields, "here")
        assert isinstance(item, str | Example)
        if isinstance(item, Example):
            assert item.prompt_ids
            assert item.num_learned
            assert item.learned is None or len(item.learned) == len(item.target_ids)
