"""Reading files that may be anything."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreword.files import Unreadable, parse_json, read_bytes, read_json

BAD = {
    "deep": "[" * 200_000,
    "deep but closed": "[" * 100_000 + "]" * 100_000,
    "huge integer": "9" * 100_000,
    "NaN": '{"a": NaN}',
    "infinity": "[-Infinity]",
    "cut": '{"a": 1',
    "nothing": "",
}


@pytest.mark.parametrize("name", BAD)
def test_json_that_no_reader_should_meet_is_unreadable(tmp_path: Path, name: str) -> None:
    file = tmp_path / "value.json"
    file.write_text(BAD[name], encoding="utf-8")
    with pytest.raises(Unreadable):
        read_json(file)


def test_a_file_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "large.json"
    with file.open("wb") as handle:
        handle.truncate(2**40)  # a sparse file: reading it would take hours
    with pytest.raises(Unreadable, match="at most"):
        read_json(file)
    assert read_bytes(Path(__file__), 2**20) == Path(__file__).read_bytes()


def test_pipes_folders_and_absent_files_are_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, tmp_path / "absent", Path("a\0b"), Path("/dev/zero")):
        with pytest.raises(Unreadable):
            read_bytes(path, 100)


@given(st.text())
def test_any_text_is_json_or_unreadable(text: str) -> None:
    with suppress(Unreadable):
        parse_json(text)
