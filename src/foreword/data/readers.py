"""Read rows from JSONL, CSV, TSV, Parquet, a Datasets folder or a Datasets id.

Readers yield `Row`s and `BadRow`s in file order. They report every line that they can't use.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.errors import DataError

MAX_LINE = 10_000_000  # bytes


@dataclass(frozen=True)
class Row:
    """The fields of one row and where it stands. line: 1-based; for Parquet and Datasets the row number."""

    fields: dict[str, Any]
    file: str
    line: int

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class BadRow:
    """A row that can't be used, and why."""

    file: str
    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.problem}"


def read_rows(source: str, split: str = "train") -> Iterator[Row | BadRow]:
    """Read the rows of `source`: a file by its suffix, a folder, or a Datasets id (`org/name` or `org/name:split`).

    split: used for Datasets sources that don't name one. Raises `DataError` if there is nothing to read.
    """
    path = Path(source)
    if path.is_file():
        readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".tsv": _tsv, ".parquet": _parquet}
        reader = readers.get(path.suffix.lower())
        if reader is None:
            raise DataError(f"{path}: unknown kind of file; use one of {', '.join(readers)}")
        return reader(path)
    if path.is_dir():
        return _datasets_folder(path, split)
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
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(str(path), line, f"not valid UTF-8 (byte {error.start} of the line)")
    except (ValueError, RecursionError) as error:  # ValueError: also for a number of thousands of digits
        return BadRow(str(path), line, f"not valid JSON: {error}")
    if not isinstance(value, dict):
        return BadRow(str(path), line, f"must be a JSON object, not {type(value).__name__}")
    return Row(value, str(path), line)


def _lines(handle: io.BufferedReader) -> Iterator[tuple[int, bytes | str]]:
    """Yield (line number, bytes), or (line number, problem) for a line over `MAX_LINE`, which is skipped."""
    line = 0
    while raw := handle.readline(MAX_LINE + 1):
        line += 1
        if len(raw) <= MAX_LINE or raw.endswith(b"\n"):
            yield line, raw
            continue
        while (rest := handle.readline(MAX_LINE)) and not rest.endswith(b"\n"):
            pass
        yield line, f"line is longer than {MAX_LINE // 1_000_000} MB"


def _csv(path: Path, delimiter: str = ",") -> Iterator[Row | BadRow]:
    previous = csv.field_size_limit(MAX_LINE)
    try:
        yield from _csv_rows(path, delimiter)
    finally:
        csv.field_size_limit(previous)


def _tsv(path: Path) -> Iterator[Row | BadRow]:
    return _csv(path, "\t")


def _csv_rows(path: Path, delimiter: str) -> Iterator[Row | BadRow]:
    # surrogateescape keeps undecodable bytes, so that the error names the row and not the file
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
        reader = csv.reader(handle, delimiter=delimiter, strict=True)
        header = _csv_header(path, reader)
        while True:
            start = reader.line_num + 1
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
    """Return the names of the fields. Raises `DataError` unless each has a name of its own."""
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise DataError(f"{path}:1: not valid CSV: {error}") from error
    if not header:
        raise DataError(f"{path}: empty file; the first line must name the fields")
    for number, name in enumerate(header, start=1):
        if not name.strip():
            raise DataError(f"{path}:1: column {number} has no name; name or remove it")
        if any("\udc80" <= char <= "\udcff" for char in name):
            raise DataError(f"{path}:1: not valid UTF-8")
        if header.index(name) + 1 < number:
            raise DataError(f"{path}:1: the field {name!r:.60} is named twice; rename or remove one")
    return header


def _csv_row(path: Path, line: int, header: list[str], cells: list[str]) -> Row | BadRow:
    if len(cells) != len(header):
        return BadRow(str(path), line, f"has {len(cells)} cells, the header has {len(header)}")
    if any("\udc80" <= char <= "\udcff" for cell in cells for char in cell):
        return BadRow(str(path), line, "not valid UTF-8")
    return Row(dict(zip(header, cells, strict=True)), str(path), line)


def _parquet(path: Path) -> Iterator[Row | BadRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                number += 1
                yield Row(fields, str(path), number)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as Parquet: {error}") from error


def _datasets_folder(path: Path, split: str) -> Iterator[Row | BadRow]:
    import datasets

    try:
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(str(path))
            loaded = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            loaded = datasets.load_dataset(str(path), split=split)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{path}: not readable as a Datasets folder (split {split!r}): {error}") from error
    return _numbered(loaded, str(path))


def _datasets_id(source: str, split: str) -> Iterator[Row | BadRow]:
    import datasets

    name, _, named_split = source.partition(":")
    try:
        loaded = datasets.load_dataset(name, split=named_split or split)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{source}: neither a file nor a folder, and not readable as a Datasets id: {text}") from error
    return _numbered(loaded, source)


def _numbered(rows: Iterable[Any], name: str) -> Iterator[Row | BadRow]:
    for number, fields in enumerate(rows, start=1):
        yield Row(dict(fields), name, number)
