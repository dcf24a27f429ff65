"""From rows to `Example`s: checked, rendered and tokenised, with every problem reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foreword.data.readers import BadRow, Row, read_rows
from foreword.errors import DataError
from foreword.models.rendering import Renderer

SHOWN = 10


@dataclass(frozen=True)
class Example:
    """One row for the model: prompt and target token ids (end token included), their texts, and where it stands."""

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    prompt: str
    target: str
    references: tuple[str, ...]
    where: str

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.target_ids)


def load_examples(
    source: str,
    renderer: Renderer,
    *,
    target_field: str = "target",
    max_tokens: int | None = None,
    max_bad_rows: int = 0,
    limit: int | None = None,
    split: str = "train",
) -> tuple[list[Example], list[BadRow]]:
    """All usable rows of `source` in file order, and the bad ones.

    A row is bad if a field is missing, empty or of the wrong type, if its line can't be read, or if
    prompt and target have more than `max_tokens` tokens. limit: stop after so many usable rows.
    Raises `DataError`, listing file and line of each (the first ten in the text), if there are more
    than `max_bad_rows`, or if no row is usable.
    """
    examples: list[Example] = []
    bad: list[BadRow] = []
    for row in read_rows(source, split):
        made = row if isinstance(row, BadRow) else _example(row, renderer, target_field, max_tokens)
        if isinstance(made, BadRow):
            bad.append(made)
        else:
            examples.append(made)
            if limit is not None and len(examples) == limit:
                break
    if len(bad) > max_bad_rows:
        text = describe(source, bad) + f"; mend them or allow them with max_bad_rows (now {max_bad_rows})"
        raise DataError(text, [str(row) for row in bad])
    if not examples:
        raise DataError(f"{source}: no usable row in it")
    return examples, bad


def describe(source: str, bad: Sequence[BadRow]) -> str:
    """One line that counts the bad rows of `source` and shows the first ten."""
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return f"{source}: {len(bad)} bad row{'s' * (len(bad) != 1)}: " + "; ".join(map(str, bad[:SHOWN])) + more


def _example(row: Row, renderer: Renderer, target_field: str, max_tokens: int | None) -> Example | BadRow:
    problem = _first_problem(row.fields, renderer.fields, target_field)
    if problem is not None:
        return BadRow(row.file, row.line, problem)
    references = tuple(row.fields.get("references") or (row.fields[target_field],))
    target = row.fields[target_field] if target_field in row.fields else references[0]
    prompt = renderer.prompt(row.fields)
    example = Example(
        tuple(renderer.prompt_ids(prompt)),
        tuple(renderer.target_ids(prompt, target)),
        prompt,
        target,
        references,
        row.where,
    )
    if max_tokens is not None and example.num_tokens > max_tokens:
        return BadRow(
            row.file,
            row.line,
            f"has {example.num_tokens} tokens, more than the {max_tokens} allowed (max_tokens)",
        )
    if not example.prompt_ids:
        return BadRow(row.file, row.line, "the prompt has no tokens")
    return example


def _first_problem(fields: dict[str, Any], inputs: Sequence[str], target_field: str) -> str | None:
    for name in inputs:
        if problem := _text_problem(fields, name):
            return problem
    references = fields.get("references")
    needs_target = target_field in fields or references is None
    if needs_target and (problem := _text_problem(fields, target_field)):
        return problem
    if references is None:
        return None
    if not isinstance(references, list) or not references:
        return f"field 'references' must be a list of at least one text, not {references!r:.60}"
    for reference in references:
        if not isinstance(reference, str) or not reference.strip():
            return f"field 'references' holds {reference!r:.60}, not a text"
        if not _encodable(reference):
            return "field 'references' holds half a surrogate pair, which is not text"
    return None


def _text_problem(fields: dict[str, Any], name: str) -> str | None:
    if name not in fields:
        return f"field {name!r} is missing (the row has {', '.join(sorted(map(str, fields))) or 'none'})"
    value = fields[name]
    if not isinstance(value, str):
        return f"field {name!r} must be text, not {type(value).__name__} ({value!r:.40})"
    if not _encodable(value):
        return f"field {name!r} holds half a surrogate pair, which is not text"
    return None if value.strip() else f"field {name!r} is empty"


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
