"""Tasks with heads on encoders, decoders and encoder–decoders: they learn, resume, save, and are measured rightly."""

from __future__ import annotations

import json

import pytest
import torch

import foreword
from foreword.errors import ConfigError, DataError, PrefixFormatError
from foreword.tasks import TaskSettings, make_task
from foreword.tasks.classify import accuracy, macro_f1
from foreword.tasks.qa import normalised, word_f1
from foreword.tasks.token_cls import entity_f1
from method_cases import moved, producer_of
from tiny import relative, tiny_base
from training_helpers import equal, final_state, settings, tensors, untimed

COLOURS = ("red", "blue")


def classified(i: int) -> dict:
    return {"text": f"{'warm' if i % 2 else 'cold'} {i}", "label": COLOURS[i % 2]}


def tagged(i: int) -> dict:
    name = ("Ann", "Bob")[i % 2]
    return {"tokens": ["see", name, str(i)], "tags": ["O", "B-person", "O"]}


def chosen(i: int) -> dict:
    choices = ["yes", "no", "maybe"][: 2 + i % 2]
    return {"question": f"{'is' if i % 2 else 'not'} {i}", "choices": choices, "label": i % 2}


def answered(i: int) -> dict:
    word = ("ann", "bob")[i % 2]
    context = f"it was {word} {i}"
    return {
        "question": "who",
        "context": context,
        "answers": [{"text": word, "start": 7}, {"text": f"{word} {i}", "start": 7}],
    }


ROWS = {"seq-cls": classified, "token-cls": tagged, "multiple-choice": chosen, "qa": answered}
MEASURES = {
    "seq-cls": {"accuracy", "macro_f1"}, "token-cls": {"accuracy", "entity_f1"}, "multiple-choice": {"accuracy"},
    "qa": {"exact_match", "f1"},
}  # fmt: skip


def write(folder, task):
    for name, count in (("train", 24), ("valid", 6)):
        lines = [json.dumps(ROWS[task](i)) for i in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def config(rows, name="run", **changes):
    return settings(rows, name, **({"template": None, "steps": 30, "head_lr": 0.02, "validate_every": 10} | changes))


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("kind", ["bert", "llama", "t5", "bart"])
def test_learns_saves_and_is_measured(tmp_path, task, kind) -> None:
    base, rows = tiny_base(kind), write(tmp_path, task)
    weights = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    result = foreword.train(base, config(rows, task=task))
    losses = [row["validation_loss"] for row in result.history if "validation_loss" in row]
    assert min(losses) < 0.8 * losses[0]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in base.model.state_dict().items())
    request = foreword.EvalConfig(data=str(rows / "valid.jsonl"), prefix=str(result.run / "prefix"))
    measured = foreword.evaluate(base, request)
    assert set(measured.metrics) == {"loss", *MEASURES[task]}
    assert measured.metrics["loss"] == pytest.approx(result.validation_loss, rel=1e-5)
    assert len(measured.texts) == 6
    without = foreword.evaluate(base, foreword.EvalConfig(data=request.data, head=str(result.run / "head")))
    assert without.metrics["loss"] != pytest.approx(measured.metrics["loss"], rel=1e-3), (
        "the prefix makes no difference"
    )


@pytest.mark.parametrize("method", ["direct", "prompt", "conditioned", "gated"])
def test_resume_is_bit_identical_with_a_head(tmp_path, method) -> None:
    base, rows = tiny_base("bert"), write(tmp_path, "seq-cls")
    changes = {"task": "seq-cls", "method": method, "steps": 6, "checkpoint_every": 3, "validate_every": 3}
    whole = foreword.train(base, config(rows, "whole", **changes))
    assert any(name.startswith("producer.head.") for name in final_state(whole.run))
    import shutil

    from training_helpers import copy_until

    copy = copy_until(whole.run, rows / "copy", 3)
    shutil.rmtree(copy / "head")
    resumed = foreword.train(base, config(rows, resume=str(copy), **changes))
    assert equal(final_state(copy), final_state(whole.run))
    assert equal(tensors(resumed.prefix), tensors(whole.prefix))
    assert untimed(resumed.history) == untimed(whole.history)
    assert (copy / "head" / "head.json").read_text() == (whole.run / "head" / "head.json").read_text()


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_a_row_scores_the_same_alone_and_padded_with_an_inserted_prompt(tmp_path, task, kind) -> None:
    """Virtual tokens and padding are neither pooled nor tagged nor chosen."""
    base, rows = tiny_base(kind), write(tmp_path, task)
    made = make_task(base, task, TaskSettings())
    with open(rows / "train.jsonl") as handle:
        made.learn(json.loads(line) for line in handle)
    items, _ = made.load(str(rows / "valid.jsonl"), max_tokens=None, max_bad_rows=0)
    for prefix in (
        moved(producer_of(base, ("direct", {}))).finish(),
        moved(producer_of(base, ("prompt", {}))).finish(),
    ):
        with torch.no_grad():
            together = made.losses(prefix, items)
            alone = torch.cat([made.losses(prefix, [item]) for item in items])
            plain = made.losses(None, items)
        assert relative(together, alone) < 1e-4
        assert relative(plain, alone) > 1e-3


def test_the_head_has_its_own_learning_rate(tmp_path) -> None:
    base, rows = tiny_base("bert"), write(tmp_path, "seq-cls")
    changes = {"task": "seq-cls", "steps": 1, "warmup": 0, "scheduler": "constant"}
    moves = []
    for rate in (1e-3, 1e-2):
        run = foreword.train(base, config(rows, f"at-{rate}", head_lr=rate, **changes)).run
        from training_helpers import list_checkpoints, load_file

        first, last = (load_file(path / "state.safetensors") for path in list_checkpoints(run / "checkpoints"))
        moved_by = {
            name: float((last[name] - first[name]).abs().max()) for name in first if name.startswith("producer")
        }
        moves.append(moved_by)
        assert moved_by["producer.head.bias"] == pytest.approx(rate, rel=1e-2)
        assert moved_by["producer.inner.keys.0"] == pytest.approx(0.05, rel=1e-2)


def test_one_prefix_for_several_data_sets_then_continued_for_one(tmp_path) -> None:
    base = tiny_base("bert")
    parts = {}
    for name, task in (("colours", "seq-cls"), ("people", "token-cls")):
        (tmp_path / name).mkdir()
        folder = write(tmp_path / name, task)
        parts[name] = {"task": task, "data": str(folder / "train.jsonl"), "validation": str(folder / "valid.jsonl")}
    changes = {"data": "", "validation": None, "mixture": parts}
    result = foreword.train(base, config(tmp_path, "together", **changes))
    losses = [row["validation_loss"] for row in result.history if "validation_loss" in row]
    assert min(losses) < 0.8 * losses[0]
    states = json.loads((result.run / "head" / "head.json").read_text())["tasks"]
    assert {name: state["task"] for name, state in states.items()} == {"colours": "seq-cls", "people": "token-cls"}
    prefix, head = str(result.run / "prefix"), str(result.run / "head")
    found = []
    for name in parts:
        request = foreword.EvalConfig(data=parts[name]["validation"], prefix=prefix, head=f"{head}:{name}")
        found.append(foreword.evaluate(base, request).metrics["loss"])
    assert sum(found) / 2 == pytest.approx(result.validation_loss, rel=1e-4)
    with pytest.raises(ConfigError, match=r"head: .* holds colours, people; name one"):
        foreword.evaluate(base, foreword.EvalConfig(data=parts["colours"]["validation"], prefix=prefix))
    more = {"task": "seq-cls", "init": "prefix", "init_prefix": prefix, "init_head": f"{head}:colours", "steps": 3}
    alone = {"data": parts["colours"]["data"], "validation": parts["colours"]["validation"]}
    continued = foreword.train(base, config(tmp_path, "alone", **alone, **more, prefix_dtype="float32"))
    assert continued.history[0]["validation_loss"] == pytest.approx(found[0], rel=1e-4)
    with pytest.raises(ConfigError, match="init_head: was trained for the classes"):
        foreword.train(base, config(tmp_path, "wrong", **alone, **(more | {"init_head": f"{head}:people"})))


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
    wrong = [
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
        ({3: part}, "must be a text of letters"),
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
    item = task.item({"tokens": ["New", "York"], "tags": ["B-x", "I-x"]}, "here")
    assert base.tokenizer.decode(item.prompt_ids) == "New York"
    choice = make_task(base, "multiple-choice", TaskSettings())
    made = choice.item({"question": "Who is", "choices": ["Bob", "Ann"], "label": 1}, "here")
    assert base.tokenizer.decode(made.choice_ids[1]) == "Who is\nAnn"
    qa = make_task(base, "qa", TaskSettings())
    span = qa.item({"question": "Who?", "context": "Bob did", "answers": [{"text": "Bob", "start": 0}]}, "here")
    assert base.tokenizer.decode(span.prompt_ids) == "Who?\nBob did"
    assert base.tokenizer.decode(span.prompt_ids[span.begin : span.end + 1]) == "Bob"


def test_a_head_on_states_that_are_projected() -> None:
    base = tiny_base("opt", word_embed_proj_dim=32)
    task = make_task(base, "seq-cls", TaskSettings())
    task.learn([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    assert task.losses(None, [task.item({"text": "a", "label": "x"}, "here")]).shape == (1,)


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


def test_measures_of_known_answers() -> None:
    assert accuracy([1, 2, 3, 3], [1, 2, 3, 4]) == 75.0
    assert macro_f1([0, 0, 1, 1], [0, 1, 1, 1]) == pytest.approx(100 * (2 / 3 + 4 / 5) / 2)
    assert entity_f1([["B-a", "I-a", "O"], ["O"]], [["B-a", "I-a", "O"], ["B-a"]]) == pytest.approx(100 * 2 / 3)
    assert entity_f1([["O"]], [["O"]]) == 0.0
    assert normalised("The  cat's, an END.") == ["cats", "end"]
    assert word_f1("the black cat", "cat") == pytest.approx(2 / 3)
    assert word_f1("", "the") == 1.0


def test_the_head_is_on_top_of_the_models_last_states() -> None:
    """Against the states that Transformers itself returns, mean over [the row's own] tokens."""
    from foreword.tasks.encode import pooled_states

    for kind, expected_of in (
        ("bert", lambda states: states[0].mean(0)),
        ("llama", lambda states: states[0, -1]),
    ):
        base, ids = tiny_base(kind), [5, 6, 7, 8]
        states = base.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        found = pooled_states(base, None, [ids, ids[:2]])[0]
        assert relative(found, expected_of(states)) < 1e-5
    base = tiny_base("t5")
    states = base.model(
        input_ids=torch.tensor([[5, 6, 7, 8]]), decoder_input_ids=torch.tensor([[258]]), output_hidden_states=True
    ).decoder_hidden_states[-1]
    assert relative(pooled_states(base, None, [[5, 6, 7, 8], [5]])[0], states[0, 0]) < 1e-5
