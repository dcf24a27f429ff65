"""From rows to items: rows are checked, rendered and tokenised, and every problem is reported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

from foreword.base.rendering import Renderer
from foreword.data.readers import read_rows
from foreword.data.rows import BadRow, Row
from foreword.errors import DataError

SHOWN = 10  # bad rows that an error message shows
LISTED = 10_000  # bad rows after which reading stops, if fewer are allowed
AHEAD = 1024  # rows that are read together, so that they can be tokenised together
T = TypeVar("T")
ItemT = TypeVar("ItemT", bound="Item")


class Item(Protocol):
    """One row for a model: its token ids, the answer as a text, and where the row stands (file and line)."""

    @property
    def prompt_ids(self) -> tuple[int, ...]: ...
    @property
    def target_ids(self) -> tuple[int, ...]:
        """Token ids of the answer; empty if the model doesn't generate it."""

    @property
    def target(self) -> str: ...
    @property
    def where(self) -> str: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def content(self) -> Any:
        """The fields that the result of a run depends on, without the place of the row."""


@dataclass(frozen=True)
class Example:
    """A row of language modelling: prompt and target token ids (with the end token), their texts, file and line."""

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    prompt: str
    target: str
    references: tuple[str, ...]
    where: str

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.target_ids)

    @property
    def content(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.prompt_ids, self.target_ids


@dataclass(frozen=True)
class Reading:
    """How a source is read.

    max_tokens: the most tokens of a usable row; None: any number. max_bad_rows: with more bad rows reading fails.
    limit: number of usable rows after which reading stops; None: all. split: of a Datasets source that names none.
    """

    max_tokens: int | None = None
    max_bad_rows: int = 0
    limit: int | None = None
    split: str = "train"


def load_items(
    source: str,
    make: Callable[[Mapping[str, Any], str], ItemT | str],
    reading: Reading,
    ahead: Callable[[Sequence[Mapping[str, Any]]], None] = lambda rows: None,
) -> tuple[list[ItemT], list[BadRow]]:
    """Return all usable rows of `source` as items, in file order, and the bad rows.

    make(fields, where): returns the item of a row, or a text that says what is wrong with the row. ahead: called with
    the fields of the rows that come next. A row is also bad if its line can't be read, or if it has more than
    `max_tokens` tokens.
    Raises `DataError` if there are more than `max_bad_rows` bad rows, or if no row is usable. It lists file and line of
    each bad row (the first ten in the text); after 10,000 of them it reads no further.
    """

    def items() -> Iterator[ItemT | BadRow]:
        rows = read_rows(source, reading.split)
        while chunk := list(islice(rows, AHEAD if reading.limit is None else min(reading.limit, AHEAD))):
            ahead([row.fields for row in chunk if isinstance(row, Row)])
            for row in chunk:
                yield row if isinstance(row, BadRow) else _checked(row, make(row.fields, row.where), reading)

    return collect(source, items(), reading.max_bad_rows, reading.limit)


def _checked(row: Row, item: ItemT | str, reading: Reading) -> ItemT | BadRow:
    if isinstance(item, str):
        return BadRow(row.file, row.line, item)
    if reading.max_tokens is not None and item.num_tokens > reading.max_tokens:
        problem = f"has {item.num_tokens} tokens, more than the {reading.max_tokens} allowed (max_tokens)"
        return BadRow(row.file, row.line, problem)
    return item


def collect(
    source: str, rows: Iterable[T | BadRow], max_bad_rows: int, limit: int | None = None
) -> tuple[list[T], list[BadRow]]:
    """Return (usable rows, bad rows) of `rows`. limit: see `Reading`. Raises `DataError` as `load_items` does."""
    usable: list[T] = []
    bad: list[BadRow] = []
    for row in rows:
        if isinstance(row, BadRow):
            bad.append(row)
            if len(bad) >= LISTED and len(bad) > max_bad_rows:
                break
        else:
            usable.append(row)
            if limit is not None and len(usable) == limit:
                break
    if len(bad) > max_bad_rows:
        stopped = " (reading stopped there)" if len(bad) >= LISTED else ""
        text = describe(source, bad) + f"{stopped}; mend them or allow them with max_bad_rows (now {max_bad_rows})"
        raise DataError(text, [str(row) for row in bad])
    if not usable:
        raise DataError(f"{source}: no usable row in it")
    return usable, bad


def describe(source: str, bad: Sequence[BadRow]) -> str:
    """Return one line that counts the bad rows of `source` and shows the first ten."""
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return f"{source}: {len(bad)} bad row{'s' * (len(bad) != 1)}: " + "; ".join(map(str, bad[:SHOWN])) + more


def load_example(fields: Mapping[str, Any], where: str, renderer: Renderer, target_field: str) -> Example | str:
    """Return the example of a row's fields, or a text that says what is wrong with the row."""
    problem = _first_problem(fields, renderer.fields, target_field)
    if problem is not None:
        return problem
    references = tuple(fields.get("references") or (fields[target_field],))
    target = _target(fields, target_field)
    prompt = renderer.prompt(fields)
    ids = tuple(renderer.prompt_ids(prompt)), tuple(renderer.target_ids(prompt, target))
    example = Example(*ids, prompt, target, references, where)
    return example if example.prompt_ids else "the prompt has no tokens"


def rendered_pairs(
    rows: Iterable[Mapping[str, Any]], renderer: Renderer, target_field: str
) -> Iterator[tuple[str, str]]:
    """Yield the (prompt, target) texts of the usable rows."""
    for fields in rows:
        if _first_problem(fields, renderer.fields, target_field) is None:
            yield renderer.prompt(fields), _target(fields, target_field)


def _target(fields: Mapping[str, Any], target_field: str) -> str:
    target: str = fields[target_field] if target_field in fields else fields["references"][0]
    return target


def _first_problem(fields: Mapping[str, Any], inputs: Sequence[str], target_field: str) -> str | None:
    """Return the first thing that is wrong with input fields, target or references, or None."""
    for name in inputs:
        if problem := text_problem(fields, name):
            return problem
    references = fields.get("references")
    needs_target = target_field in fields or references is None
    if needs_target and (problem := text_problem(fields, target_field)):
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


def text_problem(fields: Mapping[str, Any], name: str) -> str | None:
    """Return what is wrong with a field that must be a text with characters other than white space, or None."""
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
