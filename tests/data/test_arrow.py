"""Parquet and Datasets: rows as they are stored, of bounded size."""

from __future__ import annotations

import datetime

import pytest

from foreword.data import BadRow, Row, read_rows
from foreword.data import arrow as module
from foreword.errors import DataError

pa = pytest.importorskip("pyarrow")
ROWS = [
    {
        "input": f"text {number}",
        "tags": ["a", None],
        "answers": [{"text": "ü", "start": number}],
        "score": 0.5,
        "gap": None,
    }
    for number in range(150)
]


def write(path, rows, **options):
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path, **options)
    return str(path)


def fields(source) -> list[dict]:
    rows = list(read_rows(source))
    assert [row.line for row in rows] == list(range(1, len(rows) + 1))
    return [row.fields for row in rows if isinstance(row, Row)]


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"row_group_size": 7}, {"compression": "gzip"}])
def test_values_are_those_that_were_written(tmp_path, options) -> None:
    assert fields(write(tmp_path / "rows.parquet", ROWS, **options)) == ROWS


def test_a_saved_dataset_gives_the_same(tmp_path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "rows")
    assert fields(str(tmp_path / "rows")) == ROWS


def test_images_are_not_opened(tmp_path) -> None:
    import datasets

    features = datasets.Features({"input": datasets.Image()})
    rows = datasets.Dataset.from_dict({"input": [{"bytes": b"no image", "path": None}]}, features=features)
    rows.save_to_disk(tmp_path / "rows")
    assert fields(str(tmp_path / "rows")) == [{"input": {"bytes": b"no image", "path": None}}]


def test_large_rows_are_bad_and_the_others_are_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE", 1000)
    source = write(tmp_path / "rows.parquet", [{"input": "a"}, {"input": "b" * 2000}, {"input": "c"}] * 30)
    rows = list(read_rows(source))
    assert [type(row) for row in rows] == [Row, BadRow, Row] * 30
    assert str(rows[1]) == f"{source}:2: is larger than 0 MB"
    assert rows[89].line == 90


def test_a_value_that_python_has_not_is_a_bad_row(tmp_path) -> None:
    import pyarrow.parquet

    dates = pa.array([0, 2**60, 1], pa.timestamp("us"))
    pyarrow.parquet.write_table(pa.table({"when": dates}), tmp_path / "rows.parquet", store_schema=False)
    first, second, third = read_rows(str(tmp_path / "rows.parquet"))
    assert isinstance(first, Row)
    assert first.fields["when"] == datetime.datetime(1970, 1, 1)
    assert isinstance(third, Row)
    assert isinstance(second, BadRow)
    assert second.problem.startswith("holds a value that can't be read")


def test_two_columns_of_one_name_are_refused(tmp_path) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table([["a"], ["b"]], names=["input", "input"]), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="two columns are called 'input'"):
        list(read_rows(str(tmp_path / "rows.parquet")))


def test_repeats_are_fine_until_they_swell(tmp_path, monkeypatch) -> None:
    source = write(tmp_path / "rows.parquet", [{"input": "x" * 10_000}] * 500)
    assert len(fields(source)) == 500
    monkeypatch.setattr(module, "FREE", 2**20)
    with pytest.raises(DataError, match="stands for more than 200 times its size"):
        list(read_rows(source))
