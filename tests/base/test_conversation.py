"""Whole conversations: tokens and marks as Transformers makes them, or found by rendering what stands before a turn."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_templates import FAMILIES, GEMMA_1, GPT_OSS, QWEN_3, R1, Family, marked, tokenizer_of, unmarked
from foreword.base.chat import dated, prints_date, render_chat
from foreword.base.conversation import ChatFormat, Tokens, Unrendered

USER, ASSISTANT, SYSTEM, TOOL = "user", "assistant", "system", "tool"
TALK = [(USER, "What is 2 + 2?"), (ASSISTANT, "Four."), (USER, "And 3?"), (ASSISTANT, "Five.")]
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>[]|"), min_size=1, max_size=12).filter(
    str.strip
)


def messages(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in turns]


def runs(tokenizer: Any, tokens: Tokens) -> list[str]:
    """The texts of the runs of learned tokens."""
    found: list[list[int]] = [[]]
    for token, learned in zip(tokens.ids, tokens.learned, strict=True):
        if learned:
            found[-1].append(token)
        elif found[-1]:
            found.append([])
    return [tokenizer.decode(run) for run in found if run]


def encoded(tokenizer: Any, conversation: list[dict[str, Any]], **options: Any) -> Tokens:
    chat = ChatFormat(tokenizer)
    return chat.tokens(chat.talk(conversation, **options))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("system", [False, True])
def test_the_tokens_are_transformers_and_the_answers_are_learned(name, system) -> None:
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family)
    turns = messages(*[(SYSTEM, "Be brief.")] * system, *TALK)
    tokens = encoded(tokenizer, turns)
    assert list(tokens.ids) == tokenizer.apply_chat_template(turns, return_dict=False)
    assert runs(tokenizer, tokens) == [family.said.format("Four."), (family.last or family.said).format("Five.")]
    assert runs(tokenizer, encoded(tokenizer, turns, turns="last")) == [(family.last or family.said).format("Five.")]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_learned_begins_where_generation_does(name) -> None:
    tokenizer = tokenizer_of(FAMILIES[name])
    turns = messages((SYSTEM, "Be brief."), *TALK)
    tokens = encoded(tokenizer, turns)
    asked = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=False)
    assert list(tokens.ids[: tokens.answer]) == asked
    assert ChatFormat(tokenizer).prompt(turns[:-1]) == render_chat(tokenizer, turns[:-1], add_generation_prompt=True)


@pytest.mark.parametrize("name", FAMILIES)
@given(texts=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
@settings(max_examples=15, deadline=None)
def test_found_turns_are_those_that_the_template_would_mark(name, texts) -> None:
    """As Transformers' `assistant_masks` of the marked template."""
    family: Family = FAMILIES[name]
    turns = [turn for asked, said in texts for turn in messages((USER, asked), (ASSISTANT, said.strip()))]
    with_marks = tokenizer_of(family, marked(family))
    made = with_marks.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    by_marks, found = encoded(with_marks, turns), encoded(tokenizer_of(family), turns)
    assert list(by_marks.ids) == list(found.ids) == made["input_ids"]
    assert list(map(int, by_marks.learned)) == made["assistant_masks"]
    assert found.learned == by_marks.learned
    assert found.answer == by_marks.answer


@pytest.mark.smollm2
@given(texts=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), system=st.booleans())
@settings(max_examples=15, deadline=None)
def test_smollm2s_own_template(smollm2, texts, system) -> None:
    """Ids, not texts, are compared: its vocabulary lacks some bytes."""
    tokenizer = smollm2.tokenizer
    turns = [turn for asked, said in texts for turn in messages((USER, asked), (ASSISTANT, said.strip()))]
    turns = messages(*[(SYSTEM, "Be brief.")] * system) + turns
    tokens = encoded(tokenizer, turns)
    assert list(tokens.ids) == tokenizer.apply_chat_template(turns, return_dict=False)
    learned = [token for token, counts in zip(tokens.ids, tokens.learned, strict=True) if counts]
    said = [tokenizer(text.strip() + "<|im_end|>", add_special_tokens=False)["input_ids"] for _, text in texts]
    assert learned == [token for ids in said for token in ids]


def test_marks_and_turns_that_are_last_or_behind_the_prompt() -> None:
    tokenizer = tokenizer_of(FAMILIES["Phi 4"], marked(FAMILIES["Phi 4"]))
    for options in ({"turns": "last"}, {"first": 2}):
        tokens = encoded(tokenizer, messages(*TALK), **options)
        assert runs(tokenizer, tokens) == ["Five.<|im_end|>"], options


def test_an_opening_turn_of_the_assistant_is_not_learned() -> None:
    tokenizer = tokenizer_of(FAMILIES["Phi 4"])
    turns = messages((ASSISTANT, "Hello, how can I help?"), *TALK)
    assert runs(tokenizer, encoded(tokenizer, turns)) == ["Four.<|im_end|>", "Five.<|im_end|>"]
    with pytest.raises(Unrendered, match="no assistant turn"):
        ChatFormat(tokenizer).talk(turns[:1])


def test_a_system_text_that_the_template_refuses_stands_before_the_next_question() -> None:
    tokenizer = tokenizer_of(GEMMA_1)
    turns = messages((SYSTEM, "Be brief."), *TALK)
    merged = messages((USER, "Be brief.\n\nWhat is 2 + 2?"), *TALK[1:])
    tokens = encoded(tokenizer, turns)
    assert list(tokens.ids) == tokenizer.apply_chat_template(merged, return_dict=False)
    assert runs(tokenizer, tokens) == ["Four.<end_of_turn>", "Five.<end_of_turn>"]
    assert runs(tokenizer, encoded(tokenizer, turns, first=3)) == ["Five.<end_of_turn>"]
    assert ChatFormat(tokenizer).prompt(turns[:2]) == render_chat(tokenizer, merged[:1], add_generation_prompt=True)


def test_a_system_text_that_the_template_leaves_out_is_merged_too() -> None:
    family = FAMILIES["Phi 4"]
    left_out = "{%- for message in messages %}" + unmarked(family).partition("{%- for message in messages %}")[2]
    left_out = left_out.replace(
        "{{- '<|im_start|>'", "{%- if message['role'] == 'system' %}{% continue %}{%- endif %}{{- '<|im_start|>'", 1
    )
    tokenizer = tokenizer_of(family, left_out)
    assert "Be brief." not in render_chat(tokenizer, messages((SYSTEM, "Be brief."), *TALK))
    assert "<|im_sep|>Be brief.\n\nWhat" in ChatFormat(tokenizer).talk(messages((SYSTEM, "Be brief."), *TALK)).text


def test_results_of_tools_are_the_users_words_where_the_template_has_no_place_for_them() -> None:
    tokenizer = tokenizer_of(FAMILIES["Gemma 3"])
    turns = messages((USER, "Weather?"), (ASSISTANT, "call weather()"), (TOOL, "12 °C"), (ASSISTANT, "It is 12 °C."))
    tokens = encoded(tokenizer, turns)
    assert runs(tokenizer, tokens) == ["call weather()<end_of_turn>", "It is 12 °C.<end_of_turn>"]
    assert "<start_of_turn>user\n12 °C<end_of_turn>" in tokenizer.decode(tokens.ids)


def test_tools_and_their_calls_are_the_templates() -> None:
    tokenizer = tokenizer_of(QWEN_3)
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    call = {"role": ASSISTANT, "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]}
    turns = [*messages((USER, "Weather?")), call, *messages((TOOL, "12 °C"), (ASSISTANT, "It is 12 °C."))]
    tokens = encoded(tokenizer, turns, tools=tools)
    assert list(tokens.ids) == tokenizer.apply_chat_template(turns, tools=tools, return_dict=False)
    first, last = runs(tokenizer, tokens)
    assert first.startswith("\n<tool_call>\n")
    assert first.endswith("</tool_call><|im_end|>")
    assert last == "<think>\n\n</think>\n\nIt is 12 °C.<|im_end|>"
    assert '"weather"' in ChatFormat(tokenizer).prompt(turns[:1], tools)


def test_thoughts_are_learned_where_they_are_shown() -> None:
    tokenizer = tokenizer_of(QWEN_3)
    said = "<think>\nadd\n</think>\n\nFour."
    turns = messages(
        (USER, "2 + 2?"), (ASSISTANT, said), (USER, "3 + 3?"), (ASSISTANT, "<think>\nagain\n</think>\n\nSix.")
    )
    assert runs(tokenizer, encoded(tokenizer, turns)) == [
        "Four.<|im_end|>",
        "<think>\nagain\n</think>\n\nSix.<|im_end|>",
    ]
    tokenizer = tokenizer_of(GPT_OSS)
    turns = [*messages(*TALK[:1]), {"role": ASSISTANT, "content": "Four.", "reasoning_content": "add"}]
    shown = "<|channel|>analysis<|message|>add<|end|><|start|>assistant<|channel|>final<|message|>Four.<|return|>"
    assert runs(tokenizer, encoded(tokenizer, turns)) == [shown]


def test_a_generation_prompt_that_says_more_than_the_turn() -> None:
    """What is learned follows the prompt that generation has; earlier turns, shown otherwise, are counted as missed."""
    tokenizer = tokenizer_of(R1)
    chat = ChatFormat(tokenizer)
    talk = chat.talk(messages(*TALK))
    tokens = chat.tokens(talk)
    asked = chat.prompt(messages(*TALK[:-1]))
    assert tokenizer.decode(tokens.ids[: tokens.answer]) == asked
    assert asked.endswith("<think>\n")
    assert runs(tokenizer, tokens) == ["Five.</s>"]
    assert talk.missed == 1


def test_a_template_without_an_end_token_gets_one() -> None:
    family = FAMILIES["Phi 4"]
    bare = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    tokenizer = tokenizer_of(family, bare)
    assert runs(tokenizer, encoded(tokenizer, messages(*TALK)))[-1] == "Five.</s>"


def test_a_template_that_changes_what_is_said_and_one_that_refuses() -> None:
    upper = "{% for m in messages %}{{ loop.length ~ (m['content'] | upper) }}{% endfor %}"
    tokenizer = tokenizer_of(FAMILIES["Phi 4"], upper)
    assert runs(tokenizer, encoded(tokenizer, messages(*TALK))) == ["Five.</s>"]
    with pytest.raises(Unrendered, match="roles must alternate"):
        ChatFormat(tokenizer_of(FAMILIES["Gemma 3"])).talk(messages(TALK[0], TALK[0], TALK[1]))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("said", ["n", "t", "a", "think", "assistant", "m"])
def test_an_answer_that_stands_in_the_templates_own_words(name, said) -> None:
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family)
    tokens = encoded(tokenizer, messages((USER, "x"), (ASSISTANT, said), (USER, "y"), (ASSISTANT, said)))
    assert runs(tokenizer, tokens) == [family.said.format(said), (family.last or family.said).format(said)]


def test_an_answer_that_holds_an_end_token_or_stands_in_a_later_turn() -> None:
    tokenizer = tokenizer_of(FAMILIES["Phi 4"])
    turns = messages((USER, "a"), (ASSISTANT, "x<|im_end|>y"), (USER, "b"), (ASSISTANT, "y"))
    tokens = encoded(tokenizer, turns)
    assert runs(tokenizer, tokens) == ["x<|im_end|>y<|im_end|>", "y<|im_end|>"]


def test_a_tokenizer_without_positions_encodes_piece_by_piece() -> None:
    tokenizer = tokenizer_of(FAMILIES["Llama 3"])
    chat = ChatFormat(tokenizer)
    talk = chat.talk(messages(*TALK))
    assert chat._in_pieces(talk) == chat.tokens(talk)


def test_conversations_encoded_together_are_those_encoded_one_by_one() -> None:
    tokenizer = tokenizer_of(FAMILIES["Llama 3"])
    together, apart = ChatFormat(tokenizer), ChatFormat(tokenizer)
    talks = [together.talk(messages(*TALK)), together.talk(messages(*TALK[:2]))]
    together.ahead([talk.text for talk in talks])
    assert len(together._known) == 2
    assert [together.tokens(talk) for talk in talks] == [apart.tokens(talk) for talk in talks]


def test_a_template_prints_the_date_that_it_is_told() -> None:
    tokenizer = tokenizer_of(FAMILIES["Phi 4"], "{{ strftime_now('%d %b %Y') }}" + unmarked(FAMILIES["Phi 4"]))
    assert prints_date(tokenizer)
    assert not prints_date(tokenizer_of(FAMILIES["Phi 4"]))
    with dated("2001-02-03"):
        assert ChatFormat(tokenizer).prompt(messages(*TALK[:1])).startswith("03 Feb 2001<|im_start|>")
    assert not ChatFormat(tokenizer).prompt(messages(*TALK[:1])).startswith("03 Feb 2001")
