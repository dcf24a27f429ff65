"""Verbalizers: words' scores are the model's own log-probabilities; several words, several tokens, calibration."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import foreword
from foreword.base import Base
from foreword.errors import DataError
from foreword.tasks import TaskSettings, make_task
from method_cases import moved, producer_of
from tiny import PAD, byte_tokenizer, relative, tiny_base
from training_helpers import settings

WORDS = {"bad": ["b"], "good": ["g", "x"]}
MASK = 259


class MaskingTokenizer:
    """The byte tokenizer with a mask token."""

    def __init__(self) -> None:
        self._own = byte_tokenizer()
        self.mask_token, self.mask_token_id = "\0", MASK

    def __getattr__(self, name):
        return getattr(self._own, name)

    def __call__(self, text, **options):
        if isinstance(text, list):
            return {"input_ids": [self(entry, **options)["input_ids"] for entry in text]}
        ids = self._own(text, **options)["input_ids"]
        return {"input_ids": [MASK if token == byte_tokenizer()("\0")["input_ids"][0] else token for token in ids]}


def masked_base(kind="bert"):
    base = tiny_base(kind)
    base.tokenizer = MaskingTokenizer()
    return base


def task_on(base, template, **options):
    task = make_task(base, "verbalizer", TaskSettings(template, options={"words": WORDS} | options))
    task.learn([{"text": "x", "label": "good"}, {"text": "y", "label": "bad"}])
    return task


def items_of(task, texts=("some text", "q")):
    return [task.item({"text": text, "label": "good"}, "here") for text in texts]


def letters(base, *words):
    return [base.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_scores_are_the_decoders_own_log_probabilities(kind) -> None:
    base = tiny_base(kind)
    task = task_on(base, "{text}\nIt was:\n")
    found = task.logits(None, items_of(task))
    for row, text in enumerate(("some text", "q")):
        ids = base.tokenizer(f"{text}\nIt was:\n")["input_ids"]
        own = base.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        b, g, x = (own[letter] for letter in letters(base, "b", "g", "x"))
        assert found[row].tolist() == pytest.approx([float(b), float((g + x) / 2)], rel=1e-4)


def test_words_of_several_tokens_score_their_mean() -> None:
    base = tiny_base()
    task = task_on(base, "{text}\n", words={"bad": "ugh", "good": ["yes", "x"]})
    found = task.logits(None, items_of(task))[0]
    prompt = base.tokenizer("some text\n")["input_ids"]

    def score(word):
        ids = base.tokenizer(word)["input_ids"]
        logits = base.model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
        return sum(float(logits[len(prompt) - 1 + n, token]) for n, token in enumerate(ids)) / len(ids)

    assert found.tolist() == pytest.approx([score("ugh"), (score("yes") + score("x")) / 2], rel=1e-4)


def test_both_ways_of_scoring_agree() -> None:
    base = tiny_base()
    task, prefix = task_on(base, "{text}\n"), moved(producer_of(base, ("direct", {}))).finish()
    prompts = [item.prompt_ids for item in items_of(task)]
    assert relative(task._at_once(prefix, prompts), task._one_by_one(prefix, prompts)) < 1e-4


def test_a_masked_model_is_read_at_its_mask() -> None:
    base = masked_base()
    task = task_on(base, "{text} was [MASK] indeed")
    items = items_of(task)
    found = task.logits(None, items)
    for row, item in enumerate(items):
        assert item.prompt_ids.count(MASK) == 1
        own = base.model(torch.tensor([item.prompt_ids])).logits[0, item.prompt_ids.index(MASK)].log_softmax(-1)
        b, g, x = (own[letter] for letter in letters(base, "b", "g", "x"))
        assert found[row].tolist() == pytest.approx([float(b), float((g + x) / 2)], rel=1e-4)
    assert "one" in task.item({"text": "a \0 mask", "label": "good"}, "here")


def test_calibration_takes_an_empty_input_away() -> None:
    base = tiny_base()
    plain, calibrated = task_on(base, "{text}\n"), task_on(base, "{text}\n", calibrate=True)
    items = items_of(plain, ("abc",))
    empty = plain._scores(None, [tuple(base.tokenizer("\n")["input_ids"])])
    assert relative(calibrated.logits(None, items), plain.logits(None, items) - empty) < 1e-5
    nothing = SimpleNamespace(prompt_ids=tuple(base.tokenizer("\n")["input_ids"]))
    assert calibrated.logits(None, [nothing])[0].tolist() == pytest.approx([0.0, 0.0], abs=1e-4)
    assert relative(empty, torch.zeros_like(empty) + 1) > 0.01


@pytest.mark.parametrize("calibrate", [False, True])
@pytest.mark.parametrize(
    ("kind", "template", "method"),
    [
        ("llama", "{text}>\n", "direct"), ("t5", "{text}>", "direct"), ("bert", "{text} is [MASK]", "direct"),
        ("bert", "{text} [V]*3 is[V] [MASK]", "ptuning"), ("llama", "{text}>\n", "gated"),
        ("llama", "{text}>\n", "conditioned"),
    ],
)  # fmt: skip
def test_learns_with_any_method(tmp_path, kind, template, method, calibrate) -> None:
    base = masked_base(kind) if kind == "bert" else tiny_base(kind)
    for name, count in (("train", 24), ("valid", 6)):
        rows = [{"text": f"{'warm' if i % 2 else 'cold'}{i}", "label": ("bad", "good")[i % 2]} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"words": WORDS, "calibrate": calibrate}
    changes = {"task": "verbalizer", "task_options": options, "template": template, "method": method, "steps": 40}
    rate = 0.01 if method == "ptuning" else 0.05
    result = foreword.train(base, settings(tmp_path, lr=rate, validate_every=10, **changes))
    assert result.validation_loss < 0.8 * result.history[0]["validation_loss"]
    request = foreword.EvalConfig(data=str(tmp_path / "valid.jsonl"), prefix=str(result.run / "prefix"))
    measured = foreword.evaluate(base, request).metrics
    assert measured["loss"] == pytest.approx(result.validation_loss, rel=1e-4)
    assert set(measured) == {"loss", "accuracy", "macro_f1"}


def test_without_training_the_plain_base_is_asked(tmp_path) -> None:
    rows = [{"text": f"t{i}", "label": ("bad", "good")[i % 2]} for i in range(6)]
    (tmp_path / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = foreword.EvalConfig(
        data=str(tmp_path / "valid.jsonl"), task="verbalizer", task_options={"words": WORDS}, template="{text}\n"
    )
    measured = foreword.evaluate(tiny_base(), request)
    assert measured.rows == 6
    assert set(measured.texts) <= {"bad", "good"}


def test_what_can_not_be_asked_is_named() -> None:
    wrong: list[tuple[Base, str, dict[str, Any], str]] = [
        (masked_base(), "{text} [MASK]", {"words": {"bad": "awful", "good": "g"}}, "'awful' has 5 tokens; at a mask"),
        (tiny_base("bert"), "{text} [MASK]", {}, "no mask token"),
        (tiny_base("bert"), "{text}", {}, r"put \[MASK\] where the word goes"),
        (tiny_base(), "{text}\n", {"words": {"bad": "b"}}, "two classes or more"),
        (tiny_base(), "{text}\n", {"words": {"bad": [], "good": "g"}}, "bad: must be a word or a list"),
        (
            tiny_base(),
            "{text}\n",
            {"words": {True: "b", "good": "g"}},
            "the key True must be text; put it in quotes",
        ),
        (tiny_base(), "{text}", {"calibrate": True}, "template: calibrate asks about an empty input"),
        (tiny_base(), "{text}\n", {"wrods": {}}, "did you mean 'words'"),
        (tiny_base("clip_text_model"), "{text}", {}, "no output layer"),
    ]
    for base, template, options, message in wrong:
        with pytest.raises(foreword.ForewordError, match=message):
            task_on(base, template, **options)
    task = make_task(tiny_base(), "verbalizer", TaskSettings("{text}\n", options={"words": WORDS | {"fair": "f"}}))
    task.learn([])
    assert task.labels == ["bad", "fair", "good"]
    assert "is no class" in task.item({"text": "x", "label": "ugly"}, "here")
    with pytest.raises(DataError, match="needs rows of two classes or more"):
        make_task(tiny_base(), "verbalizer", TaskSettings("{text}\n")).learn([{"text": "x", "label": "a"}])


assert PAD != MASK
