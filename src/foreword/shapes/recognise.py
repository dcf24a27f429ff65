"""Which shape the rows of a source have, said in one line; or one error that says what would help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foreword.errors import DataError
from foreword.shapes.forms import Conversation, Misfit
from foreword.shapes.kinds import SHAPES, Named, Shape

Fields = Mapping[str, Any]
_ASKED = ("question", "query", "source", "src", "article", "document", "context", "passage", "code", "prompt", "input")
_ANSWERED = (
    "answer", "response", "summary", "highlights", "completion", "output", "target", "reply", "docstring", "tgt",
)  # fmt: skip
# Fields by which rows of another task are known, the first match wins
_TASKS = (
    (("tokens", "tags"), "token-cls"),
    (("context", "question", "answers"), "qa"),
    (("choices", "label"), "multiple-choice"),
    (("text", "label"), "seq-cls"),
)


def recognise(rows: Sequence[Fields], source: str) -> Shape:
    """Return the shape that most of `rows`, the first ones of `source`, have. Raises `DataError` if it is none."""
    counts = {shape.name: sum(map(shape.matches, rows)) for shape in SHAPES.values()}
    best = max(counts, key=lambda name: counts[name])
    if not counts[best]:
        raise DataError(f"{source}: {misfit(rows[0])}")
    return SHAPES[best]


def misfit(fields: Fields) -> str:
    """Say what a row has, that no shape of language modelling fits it, and which flag would help."""
    known = f"lm reads {', '.join(SHAPES)}"
    return f"no shape that task lm reads fits the rows. They have {_described(fields)}. {_advice(fields)}. {known}"


def of_task(fields: Fields) -> str | None:
    """Return the task whose rows look like this, if it is another one than language modelling."""
    return next((task for names, task in _TASKS if all(name in fields for name in names)), None)


def _described(fields: Fields) -> str:
    shown = [f"{name!s:.40} ({_kind(value)})" for name, value in list(fields.items())[:8]]
    more = f" and {len(fields) - 8} more fields" if len(fields) > 8 else ""
    return (", ".join(shown) or "no field") + more


def _kind(value: Any) -> str:
    names = {str: "text", bool: "truth value", int: "number", float: "number", type(None): "null"}
    if isinstance(value, list | tuple):
        return "list"
    return names.get(type(value), "object" if isinstance(value, Mapping) else type(value).__name__)


def _advice(fields: Fields) -> str:
    """Say which flag makes rows of such fields readable."""
    if {"chosen", "rejected"} <= set(fields):
        prompt = " --input-field prompt" if "prompt" in fields else ""
        return (
            "They are preference pairs, which this objective can't compare; to learn the chosen answers as they are, "
            f"give{prompt or ' --input-field'} --target-field chosen"
        )
    if (task := of_task(fields)) is not None:
        texts = "" if task != "seq-cls" else "; to generate the label as text, --input-field text --target-field label"
        return f"They look like rows of another task: --task {task}{texts}"
    names = [str(name) for name, value in fields.items() if isinstance(value, str) and value.strip()]
    nearest = max(SHAPES.values(), key=lambda shape: sum(name in fields for name in shape.fields))
    missing = [name for name in nearest.fields if name not in fields]
    near = f"{nearest.name} lacks {', '.join(map(repr, missing))}; " if 0 < len(missing) < len(nearest.fields) else ""
    if len(names) < 2:
        return f"{near}Two texts are needed: what is asked and what is answered" if not near else near.rstrip("; ")
    asked = next((name for name in _ASKED if name in names), names[0])
    answered = next((name for name in _ANSWERED if name in names and name != asked), None)
    answered = answered or [name for name in names if name != asked][-1]
    others = [name for name in names if name not in (asked, answered)]
    template = f", or --template {' '.join(f'{{{name}}}' for name in (*others[:2], asked))!r}" if others else ""
    return f"{near}Name the fields: --input-field {asked} --target-field {answered}{template}"


def summary(shape: Shape, rows: Sequence[Fields], turns: str, chat: bool) -> str:
    """Return the line that says what was recognised, for instance "messages, 2–9 turns; loss on assistant turns"."""
    talks = [form.turns for form in (_read(shape, fields) for fields in rows) if isinstance(form, Conversation)]
    if talks:
        many = f"{min(talks)}–{max(talks)} turns" if min(talks) < max(talks) else f"{talks[0]} turns"
        whose = "assistant turns" if turns == "all" else "the last assistant turn"
        whose = "the completion" if shape.name == "prompt/completion" else whose
        return f"{shape.name}, {many}; loss on {whose}"
    if shape.name == "text":
        return "text; loss on every token, no chat template"
    name = f"{shape.input_field}/{shape.target_field}" if isinstance(shape, Named) else shape.name
    answer = name.rpartition("/")[2]
    return f"{name}{', in the chat template' if chat else ''}; loss on the {answer}"


def _read(shape: Shape, fields: Fields) -> Any:
    try:
        return shape.read(fields)
    except Misfit:
        return None
