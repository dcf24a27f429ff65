"""Rows of every shape: good ones, wrong siblings with their exact problems, and rows that no shape fits."""

from __future__ import annotations

import json
from typing import Any

USER, ASSISTANT = "user", "assistant"
TALK = [{"role": USER, "content": "Hi"}, {"role": ASSISTANT, "content": "Hello!"}]
LONGER = [*TALK, {"role": USER, "content": "Bye"}, {"role": ASSISTANT, "content": "See you"}]
# shape → row, texts learned (Phi 4's template), what is said of it
GOOD: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "messages": (
        {"messages": LONGER},
        ["Hello!<|im_end|>", "See you<|im_end|>"],
        "messages, 4 turns; loss on assistant turns",
    ),
    "messages with tools and a system text": (
        {"messages": [{"role": "system", "content": "S"}, *TALK], "tools": [{"name": "f"}]},
        ["Hello!<|im_end|>"],
        "messages, 2 turns; loss on assistant turns",
    ),
    "messages in parts": (
        {"messages": [{"role": USER, "content": [{"type": "text", "text": "Hi"}]}, TALK[1]]},
        ["Hello!<|im_end|>"],
        "messages, 2 turns; loss on assistant turns",
    ),
    "messages as JSON in a cell": (
        {"messages": json.dumps(TALK)},
        ["Hello!<|im_end|>"],
        "messages, 2 turns; loss on assistant turns",
    ),
    "conversations": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}], "system": "S"},
        ["Hello!<|im_end|>"],
        "conversations, 2 turns; loss on assistant turns",
    ),
    "prompt/completion": (
        {"prompt": "Hi", "completion": "Hello!"},
        ["Hello!<|im_end|>"],
        "prompt/completion, in the chat template; loss on the completion",
    ),
    "prompt/completion of messages": (
        {"prompt": LONGER[:3], "completion": LONGER[3:]},
        ["See you<|im_end|>"],
        "prompt/completion, 4 turns; loss on the completion",
    ),
    "instruction/output": (
        {"instruction": "Add", "input": "1 2", "output": "3"},
        ["3<|im_end|>"],
        "instruction/output, in the chat template; loss on the output",
    ),
    "instruction/output without input": (
        {"instruction": "Add", "input": "", "output": "3"},
        ["3<|im_end|>"],
        "instruction/output, in the chat template; loss on the output",
    ),
    "input/target": (
        {"input": "Hi", "target": "Hello!"},
        ["Hello!<|im_end|>"],
        "input/target, in the chat template; loss on the target",
    ),
    "text": ({"text": "once upon"}, ["nce upon</s>"], "text; loss on every token, no chat template"),
}
# row → its exact problem, where the rows before it are of the shape
WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "messages that are a text": (
        "messages", {"messages": "Hi"}, "field 'messages' must be a list of messages, not str",
    ),
    "no messages": ("messages", {"prompt": "Hi"}, "field 'messages' is missing (the row has prompt)"),
    "empty messages": ("messages", {"messages": []}, "field 'messages' is empty"),
    "a message that is a text": (
        "messages", {"messages": ["Hi"]}, "message 1 must be an object with role and content, not str",
    ),
    "a message without a role": (
        "messages", {"messages": [{"content": "Hi"}]}, "message 1 has no 'role' (it has content)",
    ),
    "an unknown role": (
        "messages", {"messages": [{"role": "boss", "content": "Hi"}]},
        "message 1: role 'boss' is not known; use system, user, assistant or tool",
    ),
    "a role that is a number": (
        "messages", {"messages": [{"role": 3, "content": "Hi"}]},
        "message 1: role 3 is not known; use system, user, assistant or tool",
    ),
    "content that is a number": (
        "messages", {"messages": [{"role": USER, "content": 3}]}, "message 1: content must be text, not int (3)",
    ),
    "content that is null": (
        "messages", {"messages": [TALK[0], {"role": ASSISTANT, "content": None}]},
        "message 2: content must be text, not null",
    ),
    "no content": ("messages", {"messages": [{"role": USER}]}, "message 1 has no 'content'"),
    "a picture": (
        "messages", {"messages": [{"role": USER, "content": [{"type": "image", "url": "x"}]}]},
        "message 1 holds a part of type 'image'; only texts are read",
    ),
    "nobody answers": (
        "messages", {"messages": TALK[:1]}, "has no assistant turn behind a user's, so nothing to learn",
    ),
    "only empty answers": (
        "messages", {"messages": [TALK[0], {"role": ASSISTANT, "content": " "}]}, "has empty assistant turns only",
    ),
    "tools that are a number": (
        "messages", {"messages": TALK, "tools": 3}, "tools must be a list of descriptions, not int",
    ),
    "an entry without a sender": (
        "conversations", {"conversations": [{"value": "Hi"}]}, "message 1 has no 'from' (it has value)",
    ),
    "an unknown sender": (
        "conversations", {"conversations": [{"from": "alien", "value": "Hi"}]},
        "message 1: from 'alien' is not known; use system, user, assistant or tool",
    ),
    "no completion": (
        "prompt/completion", {"prompt": "Hi"}, "field 'completion' is missing (the row has prompt)",
    ),
    "a completion of messages for a text": (
        "prompt/completion", {"prompt": "Hi", "completion": TALK[1:]},
        "'completion' is a list of messages, so 'prompt' must be one too",
    ),
    "a completion that is a number": (
        "prompt/completion", {"prompt": TALK[:1], "completion": 3},
        "field 'completion' must be a list of messages, not int",
    ),
    "no output": (
        "instruction/output", {"instruction": "Add"}, "field 'output' is missing (the row has instruction)",
    ),
    "an input that is a number": (
        "instruction/output", {"instruction": "Add", "input": 3, "output": "3"},
        "field 'input' must be text, not int (3)",
    ),
    "no target": ("input/target", {"input": "Hi"}, "field 'target' is missing (the row has input)"),
    "an empty input": ("input/target", {"input": " ", "target": "x"}, "field 'input' is empty"),
    "no input": ("input/target", {"target": "x"}, "field 'input' is missing (the row has target)"),
    "references that are a text": (
        "input/target", {"input": "Hi", "references": "x"},
        "field 'references' must be a list of at least one text, not 'x'",
    ),
    "an empty text": ("text", {"text": ""}, "field 'text' is empty"),
    "a text that is a number": ("text", {"text": 3}, "field 'text' must be text, not int (3)"),
}  # fmt: skip
# rows that no shape fits → the whole error
UNKNOWN: dict[str, tuple[dict[str, Any], str]] = {
    "question and answer": (
        {"id": 3, "question": "Why?", "answer": "So."},
        "They have id (number), question (text), answer (text). Name the fields: "
        "--input-field question --target-field answer",
    ),
    "three texts": (
        {"title": "T", "article": "Long", "summary": "Short"},
        "They have title (text), article (text), summary (text). Name the fields: "
        "--input-field article --target-field summary, or --template '{title} {article}'",
    ),
    "a classification": (
        {"text": "good", "label": 1},
        "They have text (text), label (number). They look like rows of another task: --task seq-cls; "
        "to generate the label as text, --input-field text --target-field label",
    ),
    "a text with others": (
        {"text": "bye", "domain": "airline", "intent": "end"},
        "They have text (text), domain (text), intent (text). Name the fields: "
        "--input-field text --target-field intent, or --template '{domain} {text}'",
    ),
    "tags": (
        {"tokens": ["a"], "tags": ["O"]},
        "They have tokens (list), tags (list). They look like rows of another task: --task token-cls",
    ),
    "preferences": (
        {"prompt": "Hi", "chosen": "a", "rejected": "b"},
        "They have prompt (text), chosen (text), rejected (text). They are preference pairs, which this objective "
        "can't compare; to learn the chosen answers as they are, give --input-field prompt --target-field chosen",
    ),
    "a prompt without a completion": (
        {"prompt": "Hi", "n": 1},
        "They have prompt (text), n (number). prompt/completion lacks 'completion'",
    ),
    "no text": (
        {"n": 1, "m": None},
        "They have n (number), m (null). Two texts are needed: what is asked and what is answered",
    ),
}
END = ". lm reads messages, conversations, prompt/completion, instruction/output, input/target, text"
