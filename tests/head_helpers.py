"""Rows of the tasks with heads, and small runs on them."""

from __future__ import annotations

import json

from training_helpers import settings

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


def write(folder, task):
    for name, count in (("train", 24), ("valid", 6)):
        lines = [json.dumps(ROWS[task](i)) for i in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def config(rows, name="run", **changes):
    return settings(rows, name, **({"template": None, "steps": 30, "head_lr": 0.02, "validate_every": 10} | changes))
