"""The demo's task: rows, prompt, and the texts of its comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foreword.demo.stdlib import Function, functions, split
from foreword.errors import DataError

TEMPLATE = "{input}\n\nSummary:"
INSTRUCTION = (
    "You are an experienced Python programmer. Read the function below and sum up what it does in one short "
    "sentence, as the first line of its docstring would. Write the sentence only, without code.\n\n"
)
SHOTS = 3


@dataclass(frozen=True)
class DemoData:
    """The demo's files and rows.

    training, validation, instructed: JSONL files. The last two contain the same held-out rows, without and with the
    instruction. shots: the rows that initialise the prefix and are the few-shot examples.
    """

    training: Path
    validation: Path
    instructed: Path
    shots: tuple[Function, ...]
    held_out: tuple[Function, ...]


def prepare(folder: Path, rows: int) -> DemoData:
    """Write the demo's files into `folder`: all training rows, and `rows` validation rows spread evenly."""
    training, validation = split(functions())
    if len(training) < 100 or len(validation) < 5:
        raise DataError("the interpreter's standard library has too few documented functions for the demo")
    step = max(1, len(validation) // rows)
    held_out = validation[::step][:rows]
    folder.mkdir(parents=True, exist_ok=True)
    return DemoData(
        _write(folder / "train.jsonl", training),
        _write(folder / "valid.jsonl", held_out),
        _write(folder / "valid-instructed.jsonl", held_out, INSTRUCTION),
        _shots(training),
        tuple(held_out),
    )


def shown(function: Function) -> str:
    """Return a row as a few-shot example: prompt, answer, blank lines."""
    return TEMPLATE.format(input=function.code) + " " + function.summary + "\n\n\n"


def _shots(training: Sequence[Function]) -> tuple[Function, ...]:
    """Return `SHOTS` short rows from different places of the training data."""
    short = [function for function in training if len(function.code) < 120 and len(function.summary) < 60]
    return tuple(short[len(short) * number // SHOTS] for number in range(SHOTS))


def _write(path: Path, rows: Sequence[Function], before: str = "") -> Path:
    lines = (
        json.dumps({"input": before + row.code, "target": row.summary, "where": f"{row.module}.{row.name}"})
        for row in rows
    )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
