"""What the tasks with heads read: rows, settings, words, and saved heads; what is wrong with them is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

import foreword
from foreword.errors import ConfigError, DataError, PrefixFormatError
from foreword.tasks import TaskSettings, make_task
from head_helpers import COLOURS, config, write
from rows_helpers import item_of
from tiny import tiny_base

BAD = {
    "seq-cls": ({"text": "x", "label": 3}, "field 'label' must be text"),
    "token-cls": ({"tokens": ["a", "b"], "tags": ["O"]}, "has 2 words, but 1 tags"),
    "multiple-choice": ({"question": "q", "choices": ["a", "b"], "label": 2}, "must be 0 to 1, not 2"),
    "qa": (
        {"question": "q", "context": "abc", "answers": [{"text": "x", "start": 0}]},
        "the context has no 'x' at character 0",
    ),
}


@pytest.mark.parametrize("task", BAD)
def test_a_bad_row_is_named(tmp_path, task) -> None:
    rows, (row, message) = write(tmp_path, task), BAD[task]
    with (rows / "train.jsonl").open("a") as handle:
        handle.write(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=rf"train\.jsonl:25: .*{message}"):
        foreword.train(tiny_base("bert"), config(rows, task=task))


def test_wrong_settings_are_named(tmp_path) -> None:
    base, rows = tiny_base("bert"), write(tmp_path, "seq-cls")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"task": "chess"}, "task: 'chess' is not known; choose from lm, seq-cls"),
        ({"task": "seq-cls", "task_options": {"poling": "mean"}}, "did you mean 'pooling'"),
        ({"task": "token-cls", "template": "{text}"}, "template: token-cls reads words as they are"),
        ({"task": "seq-cls", "init_head": str(rows / "nowhere")}, "nowhere is not a saved head"),
        ({"mixture": {"a": {"data": "x"}}}, "mixture: has data, validation and template for each"),
        ({"data": "", "validation": None, "mixture": {"a": {"dta": "x"}}}, "mixture: a: 'dta' is none of"),
        ({"data": "", "validation": None, "mixture": {"a": {}}}, "mixture: a: data: name a file"),
        ({"task": "lm"}, "language modelling needs a decoder"),
    ]
    for changes, message in wrong:
        with pytest.raises(foreword.ForewordError, match=message):
            foreword.train(base, config(rows, "never", **changes))
        assert not (rows / "never").exists()


def test_a_head_is_needed_where_it_was_trained(tmp_path) -> None:
    base, rows = tiny_base("bert"), write(tmp_path, "seq-cls")
    result = foreword.train(base, config(rows, task="seq-cls", steps=1))
    request = foreword.EvalConfig(data=str(rows / "valid.jsonl"), task="seq-cls")
    with pytest.raises(ConfigError, match="head: seq-cls needs a trained one"):
        foreword.evaluate(base, request, result.prefix)
    other = foreword.EvalConfig(data=request.data, prefix=str(result.run / "prefix"), task="verbalizer")
    with pytest.raises(ConfigError, match=r"task: the head in .* is of seq-cls, not verbalizer"):
        foreword.evaluate(base, other)


def test_fields_of_other_names_and_folders_with_a_colon(tmp_path) -> None:
    base = tiny_base("bert")
    for name in ("train", "valid"):
        rows = [{"sentence": f"t{i}", "mood": COLOURS[i % 2]} for i in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"task": "seq-cls", "input_field": "sentence", "target_field": "mood", "steps": 1}
    result = foreword.train(base, config(tmp_path, "run-12:30", **changes))
    request = foreword.EvalConfig(data=str(tmp_path / "valid.jsonl"), prefix=str(result.run / "prefix"))
    assert foreword.evaluate(base, request).metrics["loss"] == pytest.approx(result.validation_loss, rel=1e-4)


def test_parts_of_a_mixture_may_be_called_anything(tmp_path) -> None:
    write(tmp_path, "seq-cls")
    part = {"task": "seq-cls", "data": str(tmp_path / "train.jsonl")}
    changes = {"data": "", "validation": None, "steps": 1}
    foreword.train(tiny_base("bert"), config(tmp_path, mixture={"train": part, "keys": part}, **changes))
    for wrong, message in (
        ({3: part}, "the key 3 must be text; put it in quotes"),
        ({"a b": part}, "must be a text of letters"),
        ({"a": part | {"validation": 3}}, "validation: must be"),
    ):
        with pytest.raises(ConfigError, match=f"mixture: .*{message}"):
            foreword.train(tiny_base("bert"), config(tmp_path, "never", mixture=wrong, **changes))


def test_options_with_tuples_resume(tmp_path) -> None:
    base, rows = tiny_base("bert"), write(tmp_path, "seq-cls")
    changes = {"task": "seq-cls", "task_options": {"labels": ("red", "blue")}, "steps": 2}
    run = foreword.train(base, config(rows, **changes)).run
    assert foreword.train(base, config(rows, resume=str(run), **changes)).steps == 2
    with pytest.raises(ConfigError, match="labels: name each class once"):
        make_task(base, "seq-cls", TaskSettings(options={"labels": ("red", "red")}))


def test_unusable_rows_make_no_class_and_numbers_are_no_texts() -> None:
    task = make_task(tiny_base("bert"), "seq-cls", TaskSettings())
    rows = [{"text": "a", "label": "red"}, {"text": "b", "label": "blue"}, {"text": " ", "label": "ghost"}]
    task.learn(rows)
    assert task.labels == ["blue", "red"]
    with pytest.raises(DataError, match="told by texts in 'label'; found none"):
        make_task(tiny_base("bert"), "seq-cls", TaskSettings()).learn([{"text": "a", "label": 1}])


def test_words_and_pairs_are_not_run_together() -> None:
    base = tiny_base()
    task = make_task(base, "token-cls", TaskSettings())
    task.learn([{"tokens": ["New", "York"], "tags": ["B-x", "I-x"]}])
    item = item_of(task, {"tokens": ["New", "York"], "tags": ["B-x", "I-x"]})
    assert base.tokenizer.decode(item.prompt_ids) == "New York"
    choice = make_task(base, "multiple-choice", TaskSettings())
    made = item_of(choice, {"question": "Who is", "choices": ["Bob", "Ann"], "label": 1})
    assert base.tokenizer.decode(made.choice_ids[1]) == "Who is\nAnn"
    qa = make_task(base, "qa", TaskSettings())
    span = item_of(qa, {"question": "Who?", "context": "Bob did", "answers": [{"text": "Bob", "start": 0}]})
    assert base.tokenizer.decode(span.prompt_ids) == "Who?\nBob did"
    assert base.tokenizer.decode(span.prompt_ids[span.begin : span.end + 1]) == "Bob"


def test_a_damaged_head_is_refused(tmp_path) -> None:
    base, rows = tiny_base("bert"), write(tmp_path, "seq-cls")
    run = foreword.train(base, config(rows, task="seq-cls", steps=1)).run
    file = run / "head" / "head.safetensors"
    file.write_bytes(file.read_bytes()[:-2] + b"xx")
    with pytest.raises(PrefixFormatError, match="digest differs"):
        foreword.evaluate(base, foreword.EvalConfig(data=str(rows / "valid.jsonl"), prefix=str(run / "prefix")))
    (run / "head" / "head.json").write_text("[]")
    with pytest.raises(PrefixFormatError, match="not a saved head"):
        foreword.evaluate(base, foreword.EvalConfig(data=str(rows / "valid.jsonl"), prefix=str(run / "prefix")))
