"""Read rows from JSONL, CSV, TSV, Parquet, a Datasets folder or a Datasets id.

Readers yield `Row`s and `BadRow`s in file order. They report every line that they can't use.
"""

from __future__ import annotations

import csv
import io
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foreword.data.arrow import dataset_rows, folder_rows, parquet_rows, reason, unreadable
from foreword.data.rows import MAX_COLUMNS, MAX_LINE, BadRow, Row, twice
from foreword.errors import DataError
from foreword.plain import shown, text_problem

LONGEST_NAME = 4_000  # characters of a source
MOST_SKIPPED = 200_000_000  # bytes of a line
MOST_NESTED, MOST_ENTRIES = 100_000, 1_000_000  # of a row


def read_rows(source: str, split: str = "train") -> Iterator[Row | BadRow]:
    """Read the rows of `source`: a file by its suffix, a folder, or a Datasets id (`org/name` or `org/name:split`).

    split: used for Datasets sources that don't name one. Raises `DataError` if there is nothing to read.
    """
    if (problem := text_problem(source)) or len(source) > LONGEST_NAME:
        raise DataError(f"{shown(source)}: no name of a file or folder; it {problem or 'is too long'}")
    path = Path(source)
    try:
        mode = path.stat().st_mode
    except OSError:
        mode = None
    if mode is not None and stat.S_ISDIR(mode):
        return folder_rows(path, split)
    if mode is not None and not stat.S_ISREG(mode):
        raise DataError(f"{path} is not a regular file")
    if mode is not None:
        readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".tsv": _tsv, ".parquet": parquet_rows}
        reader = readers.get(path.suffix.lower())
        if reader is None:
            raise DataError(f"{path}: unknown kind of file; use one of {', '.join(readers)}")
        return reader(path)
    if path.suffix or source.startswith((".", "/", "~")):
        raise DataError(f"{source}: no such file or folder")
    return _datasets_id(source, split)


def _jsonl(path: Path) -> Iterator[Row | BadRow]:
    with path.open("rb") as handle:
        for line, raw in _lines(handle):
            if isinstance(raw, str):
                yield BadRow(str(path), line, raw)
            elif raw.strip():
                yield _json_row(path, line, raw)


def _json_row(path: Path, line: int, raw: bytes) -> Row | BadRow:
    if raw.count(b"[") + raw.count(b"{") > MOST_NESTED or raw.count(b",") > MOST_ENTRIES:
        return BadRow(str(path), line, f"has more than {MOST_NESTED:,} lists or {MOST_ENTRIES:,} entries")
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        return BadRow(str(path), line, f"not valid UTF-8 (byte {error.start} of the line)")
    except (ValueError, RecursionError) as error:  # ValueError: also for a number of thousands of digits
        return BadRow(str(path), line, f"not valid JSON: {error}")
    if not isinstance(value, dict):
        return BadRow(str(path), line, f"must be a JSON object, not {type(value).__name__}")
    return Row(value, str(path), line)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError(f"the field {twice([name for name, _ in pairs])!r:.60} stands there twice")
    return fields


def _lines(handle: io.BufferedReader) -> Iterator[tuple[int, bytes | str]]:
    """Yield (line number, bytes), or (line number, problem) for a line over `MAX_LINE`, which is skipped."""
    line = 0
    while raw := handle.readline(MAX_LINE + 1):
        line += 1
        if len(raw) <= MAX_LINE or raw.endswith(b"\n"):
            yield line, raw
            continue
        skipped = len(raw)
        while (rest := handle.readline(MAX_LINE)) and not rest.endswith(b"\n"):
            skipped += len(rest)
            if skipped > MOST_SKIPPED:
                raise DataError(
                    f"{handle.name}:{line}: line is longer than {MOST_SKIPPED // 1_000_000} MB; no JSONL file"
                )
        yield line, f"line is longer than {MAX_LINE // 1_000_000} MB"


def _csv(path: Path, delimiter: str = ",") -> Iterator[Row | BadRow]:
    previous = csv.field_size_limit(MAX_LINE)
    try:
        yield from _csv_rows(path, delimiter)
    finally:
        csv.field_size_limit(previous)


def _tsv(path: Path) -> Iterator[Row | BadRow]:
    return _csv(path, "\t")


class _CsvLines:
    """The lines of a CSV file for `csv.reader`. Raises `csv.Error` for a row of too many bytes or cells."""

    def __init__(self, handle: io.TextIOWrapper, delimiter: str) -> None:
        self._handle, self._delimiter = handle, delimiter
        self._size = self._cells = 0

    def begin(self) -> None:
        """A row begins."""
        self._size = self._cells = 0

    def __iter__(self) -> _CsvLines:
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
                    raise DataError(f"{self._handle.name}: a line is longer than {MOST_SKIPPED // 1_000_000} MB")
            raise csv.Error(f"row is longer than {MAX_LINE // 1_000_000} MB")
        if self._cells > MOST_ENTRIES:
            raise csv.Error(f"row has more than {MOST_ENTRIES:,} cells")
        return line


def _csv_rows(path: Path, delimiter: str) -> Iterator[Row | BadRow]:
    # surrogateescape keeps undecodable bytes, so that the error names the row and not the file
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
        lines = _CsvLines(handle, delimiter)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header = _csv_header(path, reader)
        while True:
            start = reader.line_num + 1
            lines.begin()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRow(str(path), start, f"not valid CSV: {error}")
                for line in range(start + 1, reader.line_num + 1):  # an open quote takes in all following lines
                    yield BadRow(str(path), line, f"swallowed by the row that begins in line {start}")
                continue
            if cells:
                yield _csv_row(path, start, header, cells)


def _csv_header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    """Return the names of the fields. Raises `DataError`."""
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise DataError(f"{path}:1: not valid CSV: {error}") from error
    if not header:
        raise DataError(f"{path}: empty file; the first line must name the fields")
    if len(header) > MAX_COLUMNS:
        raise DataError(f"{path}:1: names {len(header):,} fields; at most {MAX_COLUMNS:,} are read")
    if any(_undecoded(name) for name in header):
        raise DataError(f"{path}:1: not valid UTF-8")
    if (name := twice(header)) is not None:
        raise DataError(f"{path}:1: the field {name!r:.60} is named twice")
    return header


def _csv_row(path: Path, line: int, header: list[str], cells: list[str]) -> Row | BadRow:
    if len(cells) != len(header):
        return BadRow(str(path), line, f"has {len(cells)} cells, the header has {len(header)}")
    if any(_undecoded(cell) for cell in cells):
        return BadRow(str(path), line, "not valid UTF-8")
    return Row(dict(zip(header, cells, strict=True)), str(path), line)


def _undecoded(text: str) -> bool:
    return not text.isascii() and any("\udc80" <= char <= "\udcff" for char in text)


def _datasets_id(source: str, split: str) -> Iterator[Row | BadRow]:
    import datasets

    name, _, named_split = source.partition(":")
    try:
        loaded = datasets.load_dataset(name, split=named_split or split, trust_remote_code=False)
    except unreadable() as error:
        text = f"neither a file nor a folder, and not readable as a Datasets id: {reason(error)}"
        raise DataError(f"{source}: {text}") from error
    return dataset_rows(loaded, source)
