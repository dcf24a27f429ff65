"""Read rows: files of many kinds, compressed or not, folders, globs, Datasets ids, and stdin.

Readers yield `Row`s and `BadRow`s in file order. They report every line that they can't use.
"""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from foreword.data.arrow import arrow_rows, dataset_rows, parquet_rows, reason, saved_rows, unreadable
from foreword.data.csv_rows import csv_rows
from foreword.data.hub import offline_unless_reached
from foreword.data.json_rows import json_rows, jsonl_rows
from foreword.data.opened import ARCHIVES, COMPRESSED, data_suffix, opened
from foreword.data.rows import BadRow, Row
from foreword.errors import DataError
from foreword.extras import require
from foreword.plain import shown, text_problem

STDIN = "-"
LONGEST_NAME = 4_000  # characters of a source
Rows = Iterator[Row | BadRow]
_STREAMS: dict[str, Callable[[str, BinaryIO], Rows]] = {
    ".jsonl": jsonl_rows, ".ndjson": jsonl_rows, ".json": json_rows,
    ".csv": csv_rows, ".tsv": partial(csv_rows, delimiter="\t"),
}  # fmt: skip
_TABLES: dict[str, Callable[[Path], Rows]] = {".parquet": parquet_rows, ".arrow": arrow_rows, ".feather": arrow_rows}
SUFFIXES = (*_STREAMS, *_TABLES)
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "eval"),
}


def read_rows(source: str, split: str = "train") -> Rows:
    """Read the rows of `source`.

    source: a file (JSONL, JSON with a list of objects, CSV, TSV, Parquet, Arrow; the first four also as .gz, .bz2 or
    .xz), a folder of such files or one that Datasets saved, a glob such as `data/*.jsonl`, a Datasets id (`org/name` or
    `org/name:split`), or `-` for stdin (JSONL or JSON).
    split: for a Datasets id that names none, and for a folder whose files are called by splits (`train.jsonl`,
    `valid.jsonl`). Raises `DataError` if there is nothing to read.
    """
    if (problem := text_problem(source)) or len(source) > LONGEST_NAME:
        raise DataError(f"{shown(source)}: no name of a file or folder; it {problem or 'is too long'}")
    if source == STDIN:
        return _stream_rows(_stdin(), "stdin", json_rows)
    path = Path(source).expanduser()
    try:
        mode = path.stat().st_mode
    except OSError:
        mode = None
    if mode is not None and stat.S_ISDIR(mode):
        return _folder_rows(path, split)
    if mode is not None:
        return _file_rows(path)
    if any(mark in source for mark in "*?["):
        return _glob_rows(source)
    if path.suffix or source.startswith((".", "/", "~")):
        raise DataError(f"{source}: no such file or folder")
    return _datasets_id(source, split)


def _file_rows(path: Path) -> Rows:
    if not path.is_file():
        raise DataError(f"{path} is not a regular file")
    if (stream := _STREAMS.get(data_suffix(path))) is not None:
        return _stream_rows(path, str(path), stream)
    if (table := _TABLES.get(path.suffix.lower())) is not None:
        return table(path)
    text = f"{', '.join(_STREAMS)} (also as {', '.join(COMPRESSED)}), {', '.join(_TABLES)}"
    raise DataError(f"{path}: unknown kind of file; use one of {text}")


def _stream_rows(path: Path, name: str, read: Callable[[str, BinaryIO], Rows]) -> Rows:
    with opened(path) as handle:
        yield from read(name, handle)


def _stdin() -> Path:
    """Return a file with all of stdin; it is read once, since rows are read several times."""
    global _SPOOLED
    if _SPOOLED is None:
        with tempfile.NamedTemporaryFile(prefix="foreword-stdin-", suffix=".jsonl", delete=False) as file:
            atexit.register(Path(file.name).unlink, missing_ok=True)
            try:
                shutil.copyfileobj(sys.stdin.buffer, file)
            except OSError as error:
                raise DataError(f"stdin can't be read: {error.strerror}") from error
        _SPOOLED = Path(file.name)
    return _SPOOLED


_SPOOLED: Path | None = None


def _glob_rows(pattern: str) -> Rows:
    at = Path(pattern).expanduser()
    folder = Path(at.anchor) if at.is_absolute() else Path()
    try:
        found = sorted(folder.glob(str(at.relative_to(at.anchor) if at.is_absolute() else at)))
    except (ValueError, NotImplementedError) as error:
        raise DataError(f"{pattern}: not readable as a glob: {error}") from error
    if not found:
        raise DataError(f"{pattern}: no file matches")
    return chain.from_iterable([_file_rows(path) for path in found])


def _folder_rows(path: Path, split: str) -> Rows:
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        return saved_rows(path, split)
    files = sorted(_data_files(path))
    if not files:
        raise DataError(f"{path}: no data file in it; use {', '.join(SUFFIXES)}")
    of_split = {name: [file for file in files if _is_of(file, words)] for name, words in _SPLITS.items()}
    chosen = of_split.get(split, []) if any(of_split.values()) else files if split == "train" else []
    if not chosen:
        raise DataError(f"{path}: no file of split {split!r} in it; its files are {_listed(files)}")
    return chain.from_iterable([_file_rows(file) for file in chosen])


def _data_files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        for name in names:
            file = Path(place) / name
            if not file.is_file():
                raise DataError(f"{file} is not a regular file")
            if file.suffix.lower() in ARCHIVES or data_suffix(file) == ".tar":
                raise DataError(f"{file}: an archive among the data files; unpack it, or move it away")
            if data_suffix(file) in SUFFIXES and not name.startswith((".", "dataset_info")):
                yield file


def _is_of(file: Path, words: tuple[str, ...]) -> bool:
    parts = file.name.lower().replace("-", ".").replace("_", ".").split(".")
    return any(word in (*parts, file.parent.name.lower()) for word in words)


def _listed(files: list[Path]) -> str:
    return ", ".join(file.name for file in files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")


def _datasets_id(source: str, split: str) -> Rows:
    datasets = require("datasets", f"to read {shown(source)} as a Datasets id (no file of that name is there)")
    name, _, named_split = source.partition(":")
    try:
        with offline_unless_reached() as reached:
            loaded = datasets.load_dataset(name, split=named_split or split, trust_remote_code=False)
    except unreadable() as error:
        text = f"neither a file nor a folder, and not readable as a Datasets id: {reason(error)}"
        if not reached:
            text = (
                "neither a file nor a folder, and the hub can't be reached for a Datasets id, of which there is no "
                "copy in the cache; download it where there is a network, and give the folder"
            )
        raise DataError(f"{source}: {text}") from error
    return dataset_rows(loaded, source)
