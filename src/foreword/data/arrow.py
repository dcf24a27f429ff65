"""Rows of Parquet and Arrow files and of Datasets folders, in batches of bounded size.

A Parquet file of a kilobyte can stand for gigabytes: a value that repeats is stored once. So columns of text stay
dictionaries until each row's size is known; rows are made one by one where they are large.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from foreword import files
from foreword.data.rows import MAX_COLUMNS, MAX_LINE, BadRow, Row, twice
from foreword.errors import DataError
from foreword.extras import require

BATCH = 64  # rows
ENTRY = 64  # bytes of a value as a Python object
MOST_LISTED = 8_000_000  # values of a nested column in one row group, which Arrow holds at once
MOST_GROWTH = 200  # times its size that a file may stand for; real ones for 2 to 30 times
FREE = 64 * 2**20  # bytes that any file may stand for


def parquet_rows(path: Path) -> Iterator[Row | BadRow]:
    """Yield the rows of a Parquet file. Raises `DataError` if it can't be read or stands for far more than its size."""
    for batch, number in _parquet_batches(path):
        yield from _rows(batch, str(path), number)


def _parquet_batches(path: Path) -> Iterator[tuple[Any, int]]:
    """Yield (batch, number of its first row). Raises `DataError`."""
    parquet = require("pyarrow.parquet", "to read Parquet")
    most = MOST_GROWTH * path.stat().st_size + FREE
    try:
        schema = parquet.ParquetFile(path).schema
        _check_names(path, [schema.column(index).path.partition(".")[0] for index in range(len(schema))])
        columns = [schema.column(index) for index in range(len(schema))]
        texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
        file = parquet.ParquetFile(path, read_dictionary=texts, pre_buffer=False)
        _check_names(path, file.schema_arrow.names, unique=True)
        _check_groups(path, file)
        number = 1
        # by row group, since a dictionary is one of a row group
        groups = (file.iter_batches(BATCH, row_groups=[group]) for group in range(file.num_row_groups))
        for batch in chain.from_iterable(groups):
            most -= sum(_size(column) for column in batch.columns)
            if most < 0:
                raise DataError(f"{path}: stands for more than {MOST_GROWTH} times its size; write it without repeats")
            yield batch, number
            number += batch.num_rows
    except unreadable() as error:
        raise DataError(f"{path}: not readable as Parquet: {reason(error)}") from error


def _check_names(path: Path, names: list[str], unique: bool = False) -> None:
    if len(set(names)) > MAX_COLUMNS:
        raise DataError(f"{path}: has {len(set(names)):,} columns; at most {MAX_COLUMNS:,} are read")
    if unique and (name := twice(names)) is not None:
        raise DataError(f"{path}: two columns are called {name!r:.60}")


def _check_groups(path: Path, file: Any) -> None:
    """Raise `DataError` for a part of a Parquet file that Arrow would hold in memory at once, and is too large."""
    for group in range(file.num_row_groups):
        for index in range(len(file.schema)):
            column, chunk = file.schema.column(index), file.metadata.row_group(group).column(index)
            if column.max_repetition_level and chunk.num_values > MOST_LISTED:
                raise DataError(f"{path}: lists of {chunk.num_values:,} values in one row group; write smaller ones")
            if chunk.total_uncompressed_size > FREE + MOST_GROWTH * chunk.total_compressed_size:
                raise DataError(f"{path}: a column unpacks to more than {MOST_GROWTH} times its size")


def _rows(batch: Any, name: str, first: int) -> Iterator[Row | BadRow]:
    """Yield the rows of a batch. A row of more than `MAX_LINE` bytes, or with a value that Python hasn't, is bad."""
    small = sum(_size(column) for column in batch.columns) <= MAX_LINE
    for start in range(0, batch.num_rows, batch.num_rows if small else 1):
        part = batch if small else batch.slice(start, 1)
        if not small and sum(_size(column) for column in part.columns) > MAX_LINE:
            yield BadRow(name, first + start, f"is larger than {MAX_LINE // 1_000_000} MB")
            continue
        try:
            rows = part.to_pylist()
        except (UnicodeDecodeError, ValueError, OverflowError, TypeError) as error:
            if part.num_rows > 1:  # find the row
                for offset in range(part.num_rows):
                    yield from _rows(part.slice(offset, 1), name, first + start + offset)
            else:
                yield BadRow(name, first + start, f"holds a value that can't be read: {reason(error)}")
            continue
        for offset, fields in enumerate(rows):
            yield Row(fields, name, first + start + offset)


def _size(array: Any) -> int:
    """Return about how many bytes the values of an array take in Python."""
    import pyarrow
    import pyarrow.compute

    types = pyarrow.types
    kind, size = array.type, ENTRY * len(array)
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _size(array.storage)
    if types.is_dictionary(kind):
        lengths = pyarrow.compute.binary_length(array.dictionary)
        return size + (pyarrow.compute.sum(lengths.take(array.indices).cast("int64")).as_py() or 0)
    if types.is_nested(kind):
        parts = array.flatten()
        return size + (sum(map(_size, parts)) if isinstance(parts, list) else _size(parts))
    if types.is_string(kind) or types.is_binary(kind) or types.is_large_string(kind) or types.is_large_binary(kind):
        return size + (pyarrow.compute.sum(pyarrow.compute.binary_length(array).cast("int64")).as_py() or 0)
    return size + int(array.nbytes)


def arrow_rows(path: Path) -> Iterator[Row | BadRow]:
    """Yield the rows of an Arrow file or stream (also called Feather). Raises `DataError`."""
    number = 1
    try:
        with path.open("rb") as handle:
            for batch in _arrow_batches(handle):
                _check_names(path, batch.schema.names, unique=True)
                for start in range(0, batch.num_rows, BATCH):
                    part = batch.slice(start, BATCH)
                    yield from _rows(part, str(path), number)
                    number += part.num_rows
    except unreadable() as error:
        raise DataError(f"{path}: not readable as Arrow: {reason(error)}") from error


def _arrow_batches(handle: Any) -> Iterator[Any]:
    ipc = require("pyarrow.ipc", "to read Arrow")
    if handle.read(6) == b"ARROW1":
        handle.seek(0)
        file = ipc.open_file(handle)
        yield from (file.get_batch(index) for index in range(file.num_record_batches))
    else:
        handle.seek(0)
        yield from ipc.open_stream(handle)


def saved_rows(path: Path, split: str) -> Iterator[Row | BadRow]:
    """Return the rows of a folder that Datasets saved. Raises `DataError`."""
    datasets = require("datasets", "to read a folder that Datasets saved")
    try:
        _check_saved(path)
        loaded = datasets.load_from_disk(str(path))
        loaded = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
    except unreadable() as error:
        raise DataError(f"{path}: not readable as a Datasets folder (split {split!r}): {reason(error)}") from error
    return dataset_rows(loaded, str(path))


def dataset_rows(dataset: Any, name: str) -> Iterator[Row | BadRow]:
    """Yield the rows of a dataset. Images and the like stay what is stored: nothing is opened or fetched."""
    number = 1
    try:
        for table in dataset.with_format("arrow").iter(batch_size=BATCH):
            for batch in table.to_batches():
                yield from _rows(batch, name, number)
                number += batch.num_rows
    except unreadable() as error:
        raise DataError(f"{name}: row {number} or one after it can't be read: {reason(error)}") from error


def _check_saved(path: Path) -> None:
    """Raise `DataError` unless the small files of a saved dataset are whole, and its data files are regular."""
    folders = [path, *(entry for entry in _listed(path) if entry.is_dir())]
    for file in (
        folder / name for folder in folders for name in ("dataset_info.json", "state.json", "dataset_dict.json")
    ):
        try:
            if file.exists() and not isinstance(files.read_json(file), dict):
                raise files.Unreadable("must hold an object")
        except files.Unreadable as error:
            raise DataError(f"{file} {error}") from error
    for file in (entry for folder in folders for entry in _listed(folder)):
        if not (file.is_file() or file.is_dir()):
            raise DataError(f"{file} is not a regular file")


def _listed(path: Path) -> list[Path]:
    return sorted(path.iterdir())


def unreadable() -> tuple[type[BaseException], ...]:
    """Return what pyarrow and Datasets raise for sources that they can't read."""
    kinds: list[type[BaseException]] = [
        OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, ImportError,
    ]  # fmt: skip
    if "pyarrow" in sys.modules:
        kinds.append(sys.modules["pyarrow"].ArrowException)
    if "datasets" in sys.modules:
        kinds.append(sys.modules["datasets"].exceptions.DatasetsError)
    return tuple(kinds)


def reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
