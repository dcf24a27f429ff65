"""Reading files that may be anything."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreword.files import Unreadable, parse_json, read_bytes, read_json, read_lines, write_json
from foreword.sealing import manifest_digest, sealed

BAD = {
    "deep": "[" * 200_000,
    "deep but closed": "[" * 100_000 + "]" * 100_000,
    "huge integer": "9" * 100_000,
    "NaN": '{"a": NaN}',
    "infinity": "[-Infinity]",
    "cut": '{"a": 1',
    "nothing": "",
    "a number beyond all": "[1e999]",
    "half of a surrogate pair": '["\\ud800"]',
    "a depth that Python reads": "[" * 200 + "]" * 200,
    "many lists": "[" + "[]," * 200_000 + "1]",
    "a name given twice": '{"a": 1, "a": 1}',
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


def test_a_file_that_never_ends_is_not_read_to_its_end() -> None:
    """Such as those of the system, which have no size."""
    with pytest.raises(Unreadable):
        read_bytes(Path("/proc/self/pagemap"), 2**33)
    with pytest.raises(Unreadable):
        list(read_lines(Path("/proc/self/pagemap"), 2**33))


def test_lines_that_end(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes("a\n\nä\ncut off".encode())
    assert list(read_lines(file, 100)) == ["a", "", "ä"]
    for content, longest in ((b"a\n\xff\n", 100), (b"a\nbcd\n", 3)):
        file.write_bytes(content)
        lines = read_lines(file, 100, longest)
        assert next(lines) == "a"
        with pytest.raises(Unreadable):
            next(lines)
    with pytest.raises(Unreadable, match="at most 2 are read"):
        list(read_lines(file, 2))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_what_is_sealed_is_read_again_with_its_digest(tmp_path_factory: pytest.TempPathFactory, value: dict) -> None:
    file = tmp_path_factory.mktemp("sealed") / "value.json"
    manifest = sealed(value)
    write_json(file, manifest)
    assert read_json(file) == manifest
    assert manifest_digest(read_json(file)) == manifest["digest"]
    assert {name: part for name, part in manifest.items() if name != "digest"} == {
        name: part for name, part in value.items() if name != "digest"
    }
