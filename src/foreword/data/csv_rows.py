"""Rows of CSV and TSV files; the first line names the fields."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import BinaryIO

from foreword.data.rows import MAX_COLUMNS, MAX_LINE, BadRow, Row, twice
from foreword.errors import DataError

MOST_CELLS = 1_000_000  # of a row
MOST_SKIPPED = 200_000_000  # bytes of a line


def csv_rows(name: str, handle: BinaryIO, delimiter: str = ",") -> Iterator[Row | BadRow]:
    """Yield the rows of a CSV file. name: the file, for errors. Raises `DataError` without a usable header."""
    previous = csv.field_size_limit(MAX_LINE)
    # surrogateescape keeps undecodable bytes, so that the error names the row and not the file
    text = io.TextIOWrapper(handle, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        yield from _rows(name, text, delimiter)
    finally:
        csv.field_size_limit(previous)
        text.detach()  # whoever opened the file closes it


class _Lines:
    """The lines of a CSV file for `csv.reader`. Raises `csv.Error` for a row of too many bytes or cells."""

    def __init__(self, name: str, handle: io.TextIOWrapper, delimiter: str) -> None:
        self._name, self._handle, self._delimiter = name, handle, delimiter
        self._size = self._cells = 0

    def begin(self) -> None:
        """A row begins."""
        self._size = self._cells = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._handle.readline(MAX_LINE + 1)
        if not line:
            raise StopIteration
        self._size += len(line)
        self._cells += line.count(self._delimiter)
        if self._size > MAX_LINE:
            skipped = 0
            while not line.endswith(("\n", "\r")) and (line := self._handle.readline(MAX_LINE)):
                skipped += len(line)
                if skipped > MOST_SKIPPED:
                    raise DataError(f"{self._name}: a line is longer than {MOST_SKIPPED // 1_000_000} MB")
            raise csv.Error(f"row is longer than {MAX_LINE // 1_000_000} MB")
        if self._cells > MOST_CELLS:
            raise csv.Error(f"row has more than {MOST_CELLS:,} cells")
        return line


def _rows(name: str, handle: io.TextIOWrapper, delimiter: str) -> Iterator[Row | BadRow]:
    lines = _Lines(name, handle, delimiter)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header = _header(name, reader)
    while True:
        start = reader.line_num + 1
        lines.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRow(name, start, f"not valid CSV: {error}")
            for line in range(start + 1, reader.line_num + 1):  # an open quote takes in all following lines
                yield BadRow(name, line, f"swallowed by the row that begins in line {start}")
            continue
        if cells:
            yield _row(name, start, header, cells)


def _header(name: str, reader: Iterator[list[str]]) -> list[str]:
    """Return the names of the fields. Raises `DataError` unless each has a name of its own."""
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise DataError(f"{name}:1: not valid CSV: {error}") from error
    if not header:
        raise DataError(f"{name}: empty file; the first line must name the fields")
    if len(header) > MAX_COLUMNS:
        raise DataError(f"{name}:1: names {len(header):,} fields; at most {MAX_COLUMNS:,} are read")
    if any(_undecoded(field) for field in header):
        raise DataError(f"{name}:1: not valid UTF-8")
    for number, field in enumerate(header, start=1):
        if not field.strip():
            raise DataError(f"{name}:1: column {number} has no name; name or remove it")
    if (doubled := twice(header)) is not None:
        raise DataError(f"{name}:1: the field {doubled!r:.60} is named twice; rename or remove one")
    return header


def _row(name: str, line: int, header: list[str], cells: list[str]) -> Row | BadRow:
    if len(cells) != len(header):
        return BadRow(name, line, f"has {len(cells)} cells, the header has {len(header)}")
    if any(_undecoded(cell) for cell in cells):
        return BadRow(name, line, "not valid UTF-8")
    return Row(dict(zip(header, cells, strict=True)), name, line)


def _undecoded(text: str) -> bool:
    return not text.isascii() and any("\udc80" <= char <= "\udcff" for char in text)
