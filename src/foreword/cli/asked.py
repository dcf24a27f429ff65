"""Inputs of `foreword generate`: arguments, a file of rows or lines, or stdin."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MOST_INPUT = 100 * 2**20  # bytes of a file of lines


def asked(prompts: Sequence[str] | None, file: str | None, templates: Sequence[str | None]) -> list[Any]:
    """Return the inputs: texts, or rows as mappings.

    templates: those of the prefixes, which say whether an argument may be a JSON object. Raises `ConfigError` or
    `DataError`.
    """
    from foreword.errors import ConfigError

    if prompts and file:
        raise ConfigError("--file", "give inputs as arguments or in a file, not both")
    if file is not None:
        inputs = _of_file(file)
    elif prompts:
        inputs = [_object(prompt, templates) for prompt in prompts if prompt.strip()]
    else:
        inputs = _of_stdin()
    if not inputs:
        raise ConfigError("prompts", "there is no input; give one as an argument, in --file, or on stdin")
    return inputs


def _of_file(file: str) -> list[Any]:
    from foreword.data.opened import data_suffix
    from foreword.data.readers import SUFFIXES
    from foreword.errors import ConfigError
    from foreword.files import Unreadable, read_text

    path = Path(file)
    if data_suffix(path) in SUFFIXES or path.is_dir() or file == "-" or any(mark in file for mark in "*?["):
        return _rows(file)
    try:
        return [line for line in read_text(path, MOST_INPUT).splitlines() if line.strip()]
    except Unreadable as error:
        raise ConfigError("--file", f"{file} {error}; what is no file can be given on stdin") from error


def _rows(source: str) -> list[Any]:
    from foreword.data.examples import collect
    from foreword.data.readers import read_rows

    rows, _ = collect(source, read_rows(source), max_bad_rows=0)
    return [row.fields for row in rows]


def _of_stdin() -> list[Any]:
    """Return the lines of stdin, or its rows if each line is a JSON object."""
    lines = [line for line in sys.stdin.read().splitlines() if line.strip()]
    rows = [_decoded(line) for line in lines]
    return rows if rows and all(row is not None for row in rows) else lines


def _object(prompt: str, templates: Sequence[str | None]) -> Any:
    """Return the row that an argument stands for, if a text can't be meant."""
    row = _decoded(prompt)
    if row is None:
        return prompt
    if "messages" in row or any(_needs(row, template) for template in templates):
        return row
    return prompt


def _needs(row: dict[str, Any], template: str | None) -> bool:
    """Whether `row` has the fields of a template that names several, or one that is not the input."""
    from foreword.base.rendering import named_fields

    names = named_fields(template)
    return bool(names) and all(name in row for name in names)


def _decoded(text: str) -> dict[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
