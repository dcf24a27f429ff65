"""Prompts and targets as token ids: the same prompt in training and generation, the end token included."""

from __future__ import annotations

import pytest

from foreword.base.rendering import Renderer
from foreword.errors import ConfigError
from tiny import BOS, EOS, byte_tokenizer


def text(renderer: Renderer, ids: list[int]) -> str:
    return renderer.tokenizer.decode(ids)


def test_template_is_the_whole_prompt() -> None:
    renderer = Renderer(byte_tokenizer(chat=True), "{name}: {food}\nDescription:")
    assert renderer.fields == ("name", "food")
    prompt = renderer.prompt({"name": "A", "food": "B", "other": "C"})
    assert prompt == "A: B\nDescription:"
    target = renderer.target_ids(prompt, "good")
    assert text(renderer, target[:-1]) == " good"
    assert target[-1] == EOS


def test_no_space_after_white_space() -> None:
    renderer = Renderer(byte_tokenizer(), "{input}\n")
    assert text(renderer, renderer.target_ids("x\n", "good")[:-1]) == "good"


def test_chat_template_and_its_end_of_turn() -> None:
    renderer = Renderer(byte_tokenizer(chat=True))
    assert renderer.prompt({"input": "hi"}) == "<s>user:hi</s><s>assistant:"
    ids = renderer.prompt_ids(renderer.prompt({"input": "hi"}))
    assert ids[0] == BOS
    assert ids.count(EOS) == 1
    assert renderer.end_ids == [EOS]


def test_without_a_chat_template_the_prompt_is_the_input() -> None:
    assert Renderer(byte_tokenizer()).prompt({"input": "hi"}) == "hi"


def test_braces_can_be_written() -> None:
    assert Renderer(byte_tokenizer(), "{{{input}}}").prompt({"input": "x"}) == "{x}"


@pytest.mark.parametrize(
    "template", ["no field", "{input", "{input.secret}", "{input[0]}", "{0}", "{}", "{input!r}", "{input:>9}"]
)
def test_templates_that_are_refused(template) -> None:
    with pytest.raises(ConfigError, match="template"):
        Renderer(byte_tokenizer(), template)


def test_prompt_ids_are_a_prefix_of_training_ids() -> None:
    renderer = Renderer(byte_tokenizer(), "{input}>")
    for word in ("a", "ü", "naïve ✓"):
        prompt = renderer.prompt({"input": word})
        joined = renderer.prompt_ids(prompt) + renderer.target_ids(prompt, "yes")
        assert joined == [*renderer.prompt_ids(prompt + " yes"), EOS]
