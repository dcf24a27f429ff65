"""Requests in OpenAI's form: what is read, what is refused and why, and how prompts are rendered."""

from __future__ import annotations

from typing import Any

import pytest

from foreword.llamacpp.questions import Prompts, Unanswered, read_question
from tiny import byte_tokenizer

GOOD: dict[str, Any] = {"model": "p", "prompt": "x"}


def test_what_is_read() -> None:
    question = read_question(GOOD | {"max_tokens": 5, "stop": "\n", "seed": 3, "user": "u"}, chat=False)
    assert (question.model, question.asked, question.max_tokens, question.stream) == ("p", "x", 5, False)
    assert question.options == {"temperature": 0, "stop": ["\n"], "seed": 3}
    assert read_question(GOOD | {"temperature": 0.5, "stream": True}, chat=False).options == {"temperature": 0.5}


@pytest.mark.parametrize(
    ("reason", "body"),
    [
        ("must be a JSON object", [GOOD]),
        ("model must be the name", {"prompt": "x"}),
        ("model must be the name", GOOD | {"model": 3}),
        ("prompt is missing", {"model": "p"}),
        ("logprobs, tools is not supported", GOOD | {"tools": [], "logprobs": 3}),
        ("n must be 1", GOOD | {"n": 2}),
        ("stream must be true or false", GOOD | {"stream": "yes"}),
        ("max_tokens must be a whole number", GOOD | {"max_tokens": 0}),
        ("max_tokens must be a whole number", GOOD | {"max_tokens": True}),
        ("max_completion_tokens must be", GOOD | {"max_completion_tokens": 1.5}),
        ("temperature must be a number from 0", GOOD | {"temperature": -1}),
        ("temperature must be a number", GOOD | {"temperature": "hot"}),
        ("temperature must be a number", GOOD | {"temperature": float("nan")}),
        ("seed must be a whole number", GOOD | {"seed": 0.5}),
        ("stop must be", GOOD | {"stop": [""]}),
        ("stop must be", GOOD | {"stop": 5}),
    ],
)
def test_what_is_refused(reason, body) -> None:
    with pytest.raises(Unanswered, match=reason) as caught:
        read_question(body, chat=False)
    assert caught.value.status == 400


def ids(prompts: Prompts, asked: Any, chat: bool = False) -> list[int]:
    return prompts.ids(read_question({"model": "p", ("messages" if chat else "prompt"): asked}, chat))


def test_prompts_are_rendered_as_in_training() -> None:
    tokenizer = byte_tokenizer(chat=True)
    text = Prompts(tokenizer, "Q: {input}\nA:")
    expected = tokenizer("Q: hi\nA:")["input_ids"]
    assert ids(text, "hi") == ids(text, ["hi"]) == ids(text, {"input": "hi"}) == expected
    assert ids(text, [{"role": "user", "content": "hi"}], chat=True) == expected
    chat = Prompts(tokenizer, "chat")
    rendered = tokenizer("<s>user:hi</s><s>assistant:", add_special_tokens=False)["input_ids"]
    assert ids(chat, "hi") == ids(chat, [{"role": "user", "content": "hi"}], chat=True) == rendered
    base = Prompts(tokenizer, None, raw=True)
    assert ids(base, "hi") == tokenizer("hi")["input_ids"]
    assert ids(base, [{"role": "user", "content": "hi"}], chat=True) == rendered
    assert ids(Prompts(tokenizer, "{a}, {b}"), {"a": "1", "b": "2"}) == tokenizer("1, 2")["input_ids"]
    assert ids(base, "") == [tokenizer.bos_token_id]


def test_prompts_that_cannot_be_rendered_are_refused() -> None:
    prompts = Prompts(byte_tokenizer(chat=True), "Q: {input}\nA:")
    said, user = {"role": "assistant", "content": "x"}, {"role": "user", "content": "x"}
    for reason, asked, chat in (
        ("must be a text", 3, False),
        ("must be a text", [], False),
        ("must be a text", {"other": "x"}, False),
        ("half a surrogate", "\ud800", False),
        ("must be a list of messages", "x", True),
        ("must be a list of messages", [], True),
        ("message 1 must be an object", ["x"], True),
        ("role 'robot' is not known", [{"role": "robot", "content": "x"}], True),
        ("must not end with the assistant's", [said], True),
        ("there are 3 messages, but this prefix", [user, said, user], True),
    ):
        with pytest.raises(Unanswered, match=reason):
            ids(prompts, asked, chat)
    with pytest.raises(Unanswered, match="an object with the texts a, b"):
        ids(Prompts(byte_tokenizer(), "{a}, {b}"), "x")
