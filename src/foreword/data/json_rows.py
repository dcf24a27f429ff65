"""Rows of JSONL files, and of JSON files that hold a list of objects."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from foreword.data.rows import MAX_LINE, BadRow, Row, twice
from foreword.errors import DataError

MOST_SKIPPED = 200_000_000  # bytes of a line
MOST_NESTED, MOST_ENTRIES = 100_000, 1_000_000  # of a row
_CHUNK = 2**16  # bytes
_SPACE = re.compile(r"[ \t\r\n]+")
_BOM = b"\xef\xbb\xbf"


def jsonl_rows(name: str, handle: BinaryIO) -> Iterator[Row | BadRow]:
    """Yield the rows of a JSONL file: one object a line, empty lines left out. name: the file, for errors."""
    for line, raw in _lines(name, handle):
        if isinstance(raw, str):
            yield BadRow(name, line, raw)
        elif raw.strip():
            yield _row(name, line, raw.removeprefix(_BOM) if line == 1 else raw)


def _row(name: str, line: int, raw: bytes) -> Row | BadRow:
    if raw.count(b"[") + raw.count(b"{") > MOST_NESTED or raw.count(b",") > MOST_ENTRIES:
        return BadRow(name, line, f"has more than {MOST_NESTED:,} lists or {MOST_ENTRIES:,} entries")
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        return BadRow(name, line, f"not valid UTF-8 (byte {error.start} of the line)")
    except (ValueError, RecursionError) as error:  # ValueError: also for a number of thousands of digits
        return BadRow(name, line, f"not valid JSON: {error}")
    if not isinstance(value, dict):
        return BadRow(name, line, f"must be a JSON object, not {type(value).__name__}")
    return Row(value, name, line)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError(f"the field {twice([name for name, _ in pairs])!r:.60} stands there twice")
    return fields


def _lines(name: str, handle: BinaryIO) -> Iterator[tuple[int, bytes | str]]:
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
                raise DataError(f"{name}:{line}: line is longer than {MOST_SKIPPED // 1_000_000} MB; no JSONL file")
        yield line, f"line is longer than {MAX_LINE // 1_000_000} MB"


def json_rows(name: str, handle: BinaryIO) -> Iterator[Row | BadRow]:
    """Yield the rows of a JSON file that holds a list of objects; a file of one object a line is read as JSONL.

    A row is read when its turn comes, so the file may be large. Raises `DataError` for anything else.
    """
    start = handle.read(_CHUNK).removeprefix(_BOM)
    text = start.lstrip()
    if text[:1] == b"{" or not text:
        yield from jsonl_rows(name, _Again(start, handle))  # type: ignore[arg-type]
    elif text[:1] == b"[":
        yield from _Elements(name, start, handle)
    else:
        raise DataError(f"{name}: must hold a list of objects, or one object a line")


class _Again:
    """A stream whose first bytes were read already."""

    def __init__(self, start: bytes, handle: BinaryIO) -> None:
        self._start, self._handle = start, handle

    def readline(self, most: int) -> bytes:
        if not self._start:
            return self._handle.readline(most)
        line, newline, rest = self._start.partition(b"\n")
        if not newline and len(line) < most:  # the line goes on behind what was read
            self._start = b""
            return line + self._handle.readline(most - len(line))
        whole = line + newline
        self._start = whole[most:] + rest
        return whole[:most]


class _Elements:
    """The objects of a JSON list, read one after the other."""

    def __init__(self, name: str, start: bytes, handle: BinaryIO) -> None:
        self._name, self._handle = name, handle
        self._decode = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_unique).raw_decode
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._text, self._at, self._line, self._ended = "", 0, 1, False
        self._add(start)

    def __iter__(self) -> Iterator[Row | BadRow]:
        self._step("[")
        while self._next() != "]":
            line = self._line
            value = self._element()
            if isinstance(value, dict):
                yield Row(value, self._name, line)
            else:
                yield BadRow(self._name, line, f"must be a JSON object, not {type(value).__name__}")
            if self._next() == "]":
                break
            self._step(",")
            if self._next() == "]":
                raise DataError(f"{self._name}:{self._line}: a comma without an object behind it")
        self._step("]")
        if self._next():
            raise DataError(f"{self._name}:{self._line}: something stands behind the list")

    def _next(self) -> str:
        """Return the next character that is no space; "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            end = self._at if space is None else space.end()
            self._pass(end)
            if end < len(self._text) or self._ended:
                return self._text[end : end + 1]
            self._add(self._handle.read(_CHUNK))

    def _step(self, wanted: str) -> None:
        if (found := self._next()) != wanted:
            raise DataError(f"{self._name}:{self._line}: not valid JSON: expected {wanted}, found {found!r}")
        self._at += 1

    def _element(self) -> Any:
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                if end < len(self._text) or self._ended:
                    self._pass(end)
                    return value
                problem = "it is cut off"
            except (ValueError, RecursionError) as error:
                problem = str(error)
            if (held := len(self._text) - self._at) > MAX_LINE:
                raise DataError(
                    f"{self._name}:{self._line}: no object within {MAX_LINE // 1_000_000} MB: {problem:.200}"
                )
            if self._ended:
                raise DataError(f"{self._name}:{self._line}: not valid JSON: {problem:.200}")
            self._add(self._handle.read(max(_CHUNK, held)))  # doubled, or a long object would take quadratic time

    def _pass(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        self._at = end

    def _add(self, data: bytes) -> None:
        self._ended = not data
        try:
            self._text = self._text[self._at :] + self._utf8.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise DataError(f"{self._name}:{self._line} or one after it: not valid UTF-8") from error
        self._at = 0
