"""Readers: every format, and every bad row reported with file and line."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.base.rendering import Renderer
from foreword.data import BadRow, Row, read_rows
from foreword.data import json_rows as module
from foreword.data.examples import is_text
from foreword.errors import DataError
from rows_helpers import load_examples
from tiny import byte_tokenizer

ROWS = [
    {"input": 'a, "b"', "target": "x"},
    {"input": "zwei\nZeilen", "target": "ü"},
    {"input": "tab\there", "target": "z"},
]


def write(tmp_path, kind: str):
    path = tmp_path / f"rows.{kind}"
    if kind in ("jsonl", "ndjson"):
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    elif kind in ("csv", "tsv"):
        with path.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, ["input", "target"], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)
    elif kind == "json":
        path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def fields_of(row: Row | BadRow) -> dict[str, Any]:
    assert isinstance(row, Row), row
    return row.fields


@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"])
def test_formats_agree(tmp_path, kind) -> None:
    rows = list(read_rows(str(write(tmp_path, kind))))
    assert [fields_of(row) for row in rows] == ROWS
    assert all(row.file.endswith(kind) for row in rows)


def test_datasets_folder(tmp_path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"validation": datasets.Dataset.from_list(ROWS[:1])}).save_to_disk(tmp_path / "dict")
    assert [fields_of(row) for row in read_rows(str(tmp_path / "one"))] == ROWS
    assert [fields_of(row) for row in read_rows(str(tmp_path / "dict"), "validation")] == ROWS[:1]
    with pytest.raises(DataError, match="train"):
        list(read_rows(str(tmp_path / "dict"), "train"))


def test_sources_that_are_not_there() -> None:
    with pytest.raises(DataError, match="no such file"):
        read_rows("nowhere.jsonl")
    with pytest.raises(DataError, match=r"not readable as a Datasets id|the hub can't be reached"):
        read_rows("nobody/nothing")


BAD = {
    "missing field": (b'{"input": "a"}', "field 'target' is missing (the row has input)"),
    "empty target": (b'{"input": "a", "target": "  "}', "field 'target' is empty"),
    "empty input": (b'{"input": "", "target": "x"}', "field 'input' is empty"),
    "wrong type": (b'{"input": 7, "target": "x"}', "field 'input' must be text, not int (7)"),
    "target list": (b'{"input": "a", "target": ["x"]}', "field 'target' must be text, not list"),
    "references empty": (b'{"input": "a", "references": []}', "must be a list of at least one text"),
    "references of numbers": (b'{"input": "a", "references": ["x", 3]}', "holds 3, not a text"),
    "references of nothing": (b'{"input": "a", "target": "x", "references": [null]}', "holds None, not a text"),
    "half a surrogate": (b'{"input": "a", "target": "\\ud83d"}', "half a surrogate pair"),
    "endless number": (b'{"input": ' + b"1" * 5000 + b"}", "not valid JSON"),
    "bad UTF-8": (b'{"input": "\xff", "target": "x"}', "not valid UTF-8 (byte 11"),
    "bad JSON": (b'{"input": ', "not valid JSON"),
    "deep JSON": (b"[" * 100_000, "not valid JSON"),
    "not an object": (b'["a"]', "must be a JSON object, not list"),
    "over-long row": (b'{"input": "' + b"a" * 200 + b'", "target": "x"}', "has 203 tokens, more than the 100 allowed"),
    "10 MB line": (b'{"input": "' + b"a" * 10_000_000 + b'", "target": "x"}', "longer than 10 MB"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_rows_are_reported_with_file_and_line(tmp_path, kind) -> None:
    line, message = BAD[kind]
    good = b'{"input": "a", "target": "x"}'
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([good, line, good]) + b"\n")
    renderer = Renderer(byte_tokenizer())
    with pytest.raises(DataError) as caught:
        load_examples(str(path), renderer, max_tokens=100)
    assert f"{path}:2: " in str(caught.value)
    assert message in str(caught.value)
    examples, bad = load_examples(str(path), renderer, max_tokens=100, max_bad_rows=1)
    assert [example.where for example in examples] == [f"{path}:1", f"{path}:3"]
    assert [entry.line for entry in bad] == [2]


def test_a_target_is_trained_on_and_references_are_measured_against(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"input": "a", "target": "x", "references": ["y", "z"]}\n{"input": "a", "references": ["y", "z"]}\n'
    )
    both, only = load_examples(str(path), Renderer(byte_tokenizer()))[0]
    assert (both.target, both.references) == ("x", ("y", "z"))
    assert (only.target, only.references) == ("y", ("y", "z"))


def test_bad_csv_rows(tmp_path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'input,target\na,x\nb\n"c\nd",y\n\xff,z\ne,w\n')
    rows = list(read_rows(str(path)))
    assert [row.fields["input"] for row in rows if isinstance(row, Row)] == ["a", "c\nd", "e"]
    assert [(row.line, row.problem) for row in rows if isinstance(row, BadRow)] == [
        (3, "has 1 cells, the header has 2"),
        (6, "not valid UTF-8"),
    ]
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match="empty file"):
        list(read_rows(str(tmp_path / "empty.csv")))


def test_every_bad_row_is_counted(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"input": "a", "target": "b"}\n' + '{"input": "a"}\n' * 25)
    with pytest.raises(DataError, match=r"25 bad rows: .*:4: .*; and 22 more; mend them or allow them") as raised:
        load_examples(str(path), Renderer(byte_tokenizer()))
    assert len(raised.value.problems) == 25
    path.write_text("\n")
    with pytest.raises(DataError, match="no usable row"):
        load_examples(str(path), Renderer(byte_tokenizer()))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=12))
def test_no_line_of_any_bytes_is_lost(tmp_path_factory, lines) -> None:
    lines = [line.replace(b"\n", b" ") for line in lines]
    path = tmp_path_factory.mktemp("fuzz") / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    found = [row.line for row in read_rows(str(path))]
    assert found == [number for number, line in enumerate(lines, start=1) if line.strip()]


def test_a_file_without_a_usable_row_is_one_short_error(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"input": 3, "target": "b"}\n' * 42_061)
    with pytest.raises(DataError) as raised:
        load_examples(str(path), Renderer(byte_tokenizer()))
    problem = "field 'input' must be text, not int (3)"
    assert str(raised.value) == (
        f"{path}: none of the first 1,024 rows can be used (reading stopped there): {path}:1: {problem}. "
        "Mend them or allow them with --max-bad-rows (now 0)"
    )


def test_a_long_line_does_not_hide_the_next(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE", 50)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"x" * 500 + b'\n{"input": "a"}\n' + b"y" * 51)
    rows = list(read_rows(str(path)))
    assert [(type(row).__name__, row.line) for row in rows] == [("BadRow", 1), ("Row", 2), ("BadRow", 3)]


def test_shared_data_sets_are_readable(data_folder) -> None:
    renderer = Renderer(byte_tokenizer(), "{input}\nDescription:")
    examples, bad = load_examples(str(data_folder / "e2e" / "valid.jsonl"), renderer)
    assert (len(examples), bad) == (547, [])
    assert max(len(example.references) for example in examples) > 1


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("input,target,input", ":1: the field 'input' is named twice"),
        ("input,target,,other", "column 3 has no name"),
        ("input, ,target", "column 2 has no name"),
        (",input,target", "column 1 has no name"),
        ('input,"tar', ":1: not valid CSV"),
        ("input,\xff", ":1: not valid UTF-8"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_header_names_each_field_once(tmp_path, header, problem, kind) -> None:
    """Of two columns of one name the last would win, silently."""
    path = tmp_path / f"rows.{kind}"
    text = f"{header}\n{','.join('abcd'[: header.count(',') + 1])}\n"
    path.write_bytes((text.replace(",", "\t") if kind == "tsv" else text).encode("latin-1"))
    with pytest.raises(DataError, match=problem) as caught:
        list(read_rows(str(path)))
    assert str(path) in str(caught.value)


HALF = "\ud800"


@pytest.mark.parametrize("value", [HALF, [f"a{HALF}"], {"x": [HALF]}, {HALF: 1}, [[{"a": [f"{HALF}b"]}]]], ids=repr)
def test_half_a_surrogate_pair_anywhere_in_a_row_is_told(tmp_path, value) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [{"input": "x", "target": "y"}, {"input": "x", "target": "y", "more": value}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=r"rows.jsonl:2: field 'more' holds half a surrogate pair"):
        load_examples(str(path), Renderer(byte_tokenizer(), "{input}"))
    examples, bad = load_examples(str(path), Renderer(byte_tokenizer(), "{input}"), max_bad_rows=1)
    assert (len(examples), len(bad)) == (1, 1)


def test_deep_rows_are_no_reason_to_stop(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    deep = '{"a":' * 400 + "1" + "}" * 400
    path.write_text('{"input": "x", "target": "y", "more": ' + deep + "}\n")
    assert len(load_examples(str(path), Renderer(byte_tokenizer(), "{input}"))[0]) == 1


def test_whole_pairs_are_text() -> None:
    assert is_text({"a": ["😀", "\ue000", 1, None, 0.5]})


PACKED: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "json"])
def test_compressed_files_are_read_as_the_plain_one(tmp_path, kind, packed) -> None:
    plain = write(tmp_path, kind)
    path = plain.rename(tmp_path / "plain")
    whole = tmp_path / f"rows.{kind}.{packed}"
    whole.write_bytes(PACKED[packed](path.read_bytes()))
    rows = list(read_rows(str(whole)))
    assert [fields_of(row) for row in rows] == ROWS
    assert all(row.file == str(whole) for row in rows)


@pytest.mark.parametrize("stream", [False, True])
def test_arrow_files_and_streams(tmp_path, stream) -> None:
    import pyarrow as pa

    table = pa.Table.from_pylist(ROWS)
    path = tmp_path / "rows.arrow"
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), table.schema) as writer:
        writer.write_table(table)
    assert [fields_of(row) for row in read_rows(str(path))] == ROWS


def test_globs_and_folders_of_files(tmp_path) -> None:
    for name, row in zip(("a.jsonl", "b.jsonl"), ROWS, strict=False):
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    (tmp_path / "README.md").write_text("about the rows")
    assert [fields_of(row) for row in read_rows(str(tmp_path / "*.jsonl"))] == ROWS[:2]
    assert [fields_of(row) for row in read_rows(str(tmp_path))] == ROWS[:2]
    with pytest.raises(DataError, match=r"\*\.csv: no file matches"):
        read_rows(str(tmp_path / "*.csv"))
    with pytest.raises(DataError, match=r"no file of split 'validation' in it; its files are a\.jsonl, b\.jsonl"):
        read_rows(str(tmp_path), "validation")


def test_a_folder_whose_files_are_called_by_splits(tmp_path) -> None:
    for name, row in zip(("train-0.csv", "valid.csv", "test.csv"), ROWS, strict=True):
        (tmp_path / name).write_text(f"input,target\nrow,{row['target']}\n")
    for split, row in zip(("train", "validation", "test"), ROWS, strict=True):
        assert [fields_of(found)["target"] for found in read_rows(str(tmp_path), split)] == [row["target"]]


def test_an_empty_folder_and_one_with_an_archive(tmp_path) -> None:
    with pytest.raises(DataError, match=r"no data file in it; use \.jsonl"):
        read_rows(str(tmp_path))
    (tmp_path / "rows.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"rows\.zip: an archive among the data files; unpack it"):
        read_rows(str(tmp_path))


def test_stdin_is_read_as_often_as_asked(tmp_path) -> None:
    code = (
        "from foreword.data import read_rows\n"
        "for _ in range(2): print([(row.fields['input'], row.where) for row in read_rows('-')])"
    )
    for text in ('{"input": "a"}\n{"input": "b"}\n', '[{"input": "a"},\n{"input": "b"}]'):
        done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True, check=True)
        assert done.stdout == "[('a', 'stdin:1'), ('b', 'stdin:2')]\n" * 2


def test_lines_of_json_in_a_json_file_and_a_byte_order_mark(tmp_path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"input": "a"}\n\n{"input": "b"}\n')
    assert [(fields_of(row)["input"], row.line) for row in read_rows(str(path))] == [("a", 1), ("b", 3)]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=8), st.integers(0, 3), st.integers(1, 40))
def test_a_json_list_reads_as_json_does(values: list[Any], indent: int, chunk: int) -> None:
    """Whatever the rows, the white space, and where the pieces end that are read."""
    text = json.dumps(values, indent=indent or None, ensure_ascii=indent == 1).encode("utf-8", "surrogatepass")
    try:
        text.decode()
    except UnicodeDecodeError:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        rows = list(module.json_rows("rows.json", io.BytesIO(text)))
    assert [fields_of(row) for row in rows] == values
    lines = text.decode().split("\n")
    assert all(lines[row.line - 1].lstrip(" [,").startswith("{") for row in rows)


@settings(deadline=None)
@given(st.text('[]{},:"ab1 \n\\', max_size=40) | st.text(max_size=40))
def test_any_text_is_rows_bad_rows_or_a_data_error(text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    for read in (module.json_rows, module.jsonl_rows):
        with contextlib.suppress(DataError):
            assert all(isinstance(row, Row | BadRow) for row in read("rows", io.BytesIO(data)))
