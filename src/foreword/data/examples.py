"""From rows to items: rows are checked, rendered and tokenised, and every problem is reported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from foreword import plain, status
from foreword.base.frozen import FrozenModel
from foreword.data.compact import LISTED as LISTED_ITEMS
from foreword.data.compact import Gathering
from foreword.data.readers import read_rows
from foreword.data.row_cache import Known, kept_items, make_room, place_of, rows_folder
from foreword.data.rows import BadRow, Row
from foreword.data.tokenizing import row_count, threads_of_tokenizers
from foreword.errors import ConfigError, DataError, StorageError
from foreword.shapes.forms import Misfit, text

SHOWN = DataError.shown
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
class Reading:
    """How a source is read.

    max_tokens: the most tokens of a usable row; None: any number. max_bad_rows: with more bad rows reading fails.
    limit: number of usable rows after which reading stops; None: all. split: of a Datasets source that names none.
    """

    max_tokens: int | None = None
    max_bad_rows: int = 0
    limit: int | None = None
    split: str = "train"


def room(base: FrozenModel, length: int) -> int:
    """Return the most tokens of a row behind a prefix of `length` virtual tokens.

    Raises `ConfigError` if the prefix leaves no position to a row.
    """
    most = base.max_positions - length
    if most < 1:
        raise ConfigError(
            "length",
            f"{length} virtual tokens fill the {base.max_positions} positions of {base.name}, and no row fits behind "
            "them; take a shorter prefix, or a base with more positions",
        )
    return most


def load_items(
    source: str,
    make: Callable[[Mapping[str, Any], str], ItemT | str],
    reading: Reading,
    ahead: Callable[[Sequence[Mapping[str, Any]]], None] = lambda rows: None,
    hint: Callable[[Mapping[str, Any]], str] = lambda fields: "",
    known: Known | None = None,
) -> tuple[Sequence[ItemT], list[BadRow]]:
    """Return all usable rows of `source` as items, in file order, and the bad rows.

    make(fields, where): returns the item of a row, or a text that says what is wrong with the row. ahead: called with
    the fields of the rows that come next. A row is also bad if its line can't be read, or if it has more than
    `max_tokens` tokens.
    hint: called with the fields of the first row if none of the first rows is usable; returns what would help.
    known: what the items can be known again by; those of a large file are then kept in the cache. Many items are not
    held in memory but made when they are asked for.
    Raises `DataError` if there are more than `max_bad_rows` bad rows, or if no row is usable. It lists file and line of
    each bad row (the first three in the text); after 1,024 without a usable one, or 10,000, it reads no further.
    """
    place = place_of(source, asdict(reading), known)
    if place is not None and known is not None and (kept := kept_items(place, known)) is not None:
        ahead(next(_chunks(source, reading))[1])  # by the first rows a task knows their shape
        status.note(f"{source}: {len(kept[0]):,} rows as they were tokenised before")
        return kept
    try:
        return _read_items(source, make, reading, ahead, hint, place)
    except StorageError as error:
        status.note(f"the rows are held in memory, since they can't be stored: {error}")
        return _read_items(source, make, reading, ahead, hint, None, listed=sys.maxsize)


def _read_items(
    source: str,
    make: Callable[[Mapping[str, Any], str], ItemT | str],
    reading: Reading,
    ahead: Callable[[Sequence[Mapping[str, Any]]], None],
    hint: Callable[[Mapping[str, Any]], str],
    place: Path | None,
    listed: int | None = None,
) -> tuple[Sequence[ItemT], list[BadRow]]:
    """Read and tokenise every row. place: where the items are kept; None: nowhere. listed: so many are a list."""
    first: list[Mapping[str, Any]] = []
    total, what = row_count(source, reading.limit), f"tokenising {Path(source).name}"

    def items() -> Iterator[ItemT | BadRow]:
        done = 0
        status.doing(what, done, total)
        for chunk, fields in _chunks(source, reading):
            first.extend(fields[: 1 - len(first)])
            ahead(fields)
            for row in chunk:
                yield _item(row, make, reading)
            done += len(chunk)
            status.doing(what, done, total)

    store = Gathering[ItemT](place or rows_folder() / "unkept", place is not None, listed or LISTED_ITEMS)
    with threads_of_tokenizers(), store as usable:
        bad = gather(
            source, items(), usable, reading.max_bad_rows, reading.limit, lambda: hint(first[0]) if first else ""
        )
        gathered = usable.finish({"bad": [[row.file, row.line, row.problem] for row in bad]})
    if place is not None and not isinstance(gathered, list):
        make_room(place)
    return gathered, bad


def _chunks(source: str, reading: Reading) -> Iterator[tuple[list[Row | BadRow], list[Mapping[str, Any]]]]:
    """Yield (rows, fields of those that can be read), `AHEAD` rows at a time."""
    rows = read_rows(source, reading.split)
    while chunk := list(islice(rows, AHEAD if reading.limit is None else min(reading.limit, AHEAD))):
        yield chunk, [row.fields for row in chunk if isinstance(row, Row) and not broken_field(row.fields)]


def broken_field(fields: Mapping[str, Any]) -> str | None:
    """Return the first field with half a surrogate pair in it, which no tokenizer reads; None if there is none."""
    return next((name for name, value in fields.items() if not is_text(name) or not is_text(value)), None)


def is_text(value: Any) -> bool:
    """Return False if `value`, or a text within it, holds half a surrogate pair."""
    if isinstance(value, str):  # as most are
        return plain.text_problem(value, null=True) is None
    left = [value]
    while left:  # not recursive: a row may be nested as deep as its JSON could be read
        entry = left.pop()
        if isinstance(entry, str) and plain.text_problem(entry, null=True):
            return False
        if isinstance(entry, Mapping):
            left += [*entry.keys(), *entry.values()]
        elif isinstance(entry, list | tuple):
            left += entry
    return True


def _item(row: Row | BadRow, make: Callable[[Mapping[str, Any], str], ItemT | str], reading: Reading) -> ItemT | BadRow:
    if isinstance(row, BadRow):
        return row
    if (name := broken_field(row.fields)) is not None:
        return BadRow(row.file, row.line, f"field {name!r} holds half a surrogate pair, which is not text")
    item = make(row.fields, row.where)
    if isinstance(item, str):
        return BadRow(row.file, row.line, item)
    if reading.max_tokens is not None and item.num_tokens > reading.max_tokens:
        problem = f"has {item.num_tokens} tokens, more than the {reading.max_tokens} allowed (max_tokens)"
        return BadRow(row.file, row.line, problem)
    return item


def collect(source: str, rows: Iterable[T | BadRow], max_bad_rows: int) -> tuple[list[T], list[BadRow]]:
    """Return (usable rows, bad rows) of `rows`. Raises `DataError` as `load_items` does."""
    usable = Gathering[T](None)
    bad = gather(source, rows, usable, max_bad_rows)
    return list(usable.finish({})), bad


def gather(
    source: str,
    rows: Iterable[T | BadRow],
    usable: Gathering[T],
    max_bad_rows: int,
    limit: int | None = None,
    hint: Callable[[], str] = str,
) -> list[BadRow]:
    """Put the usable ones of `rows` into `usable` and return the bad ones. limit: see `Reading`.

    Raises `DataError` as `load_items` does.
    """
    bad: list[BadRow] = []
    for row in rows:
        if isinstance(row, BadRow):
            bad.append(row)
            if len(bad) >= (LISTED if len(usable) else AHEAD) and len(bad) > max_bad_rows:
                break
        else:
            usable.append(row)
            if limit is not None and len(usable) == limit:
                break
    if len(bad) > max_bad_rows:
        raise DataError(_too_many(source, bad, len(usable) > 0, max_bad_rows, hint()), [str(row) for row in bad])
    if not len(usable):
        raise DataError(f"{source}: no usable row in it")
    return bad


def _too_many(source: str, bad: Sequence[BadRow], some: bool, allowed: int, hint: str) -> str:
    stopped = " (reading stopped there)" if len(bad) >= (LISTED if some else AHEAD) else ""
    remedy = f"mend them or allow them with --max-bad-rows (now {allowed})"
    if some or len(bad) == 1:
        return f"{describe(source, bad)}{stopped}; {remedy}{f'. {hint}' if hint and not some else ''}"
    problems = {row.problem: row for row in reversed(bad)}  # the first row of each problem
    shown = [str(row) for row in list(problems.values())[::-1][:SHOWN]]
    none = f"{source}: none of the first {len(bad):,} rows can be used{stopped}"
    return f"{none}: {'; '.join(shown)}. {hint or remedy.capitalize()}"


def _examples(bad: Sequence[BadRow]) -> str:
    more = f"; and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
    return "; ".join(map(str, bad[:SHOWN])) + more


def describe(source: str, bad: Sequence[BadRow]) -> str:
    """Return one line that counts the bad rows of `source` and shows the first ones."""
    return f"{source}: {len(bad):,} bad row{'s' * (len(bad) != 1)}: {_examples(bad)}"


def text_problem(fields: Mapping[str, Any], name: str) -> str | None:
    """Return what is wrong with a field that must be a text with characters other than white space, or None."""
    try:
        text(fields, name)
    except Misfit as problem:
        return str(problem)
    return None
