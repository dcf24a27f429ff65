"""The HTML file of a comparison: whole, without script and without anything from outside, whatever runs hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from foreword.runs import compare
from foreword.runs.drawing import HEIGHT, WIDTH
from foreword.runs.page import page
from page_helpers import ALLOWED, Reader
from run_helpers import make_run

HOSTILE = (
    "<script>alert(1)</script>\"'><img src=https://evil.test/x onerror=alert(1)>&amp;</style></title>\x1b[31m\u202e"
)


@pytest.fixture
def hostile(tmp_path) -> list[Path]:
    odd: dict[str, Any] = {"template": HOSTILE, HOSTILE: HOSTILE, "options": {HOSTILE: [HOSTILE]}}
    first = make_run(tmp_path / (HOSTILE.replace("/", "_") + "\udcff"), **odd)
    with (first / "history.jsonl").open("a") as file:
        file.write('{"step": 11, "validation_loss": 0.5, "<script>": 3}\n')
    return [first, make_run(tmp_path / "plain", model=HOSTILE)]


def test_nothing_of_a_run_becomes_markup(hostile) -> None:
    html = page(compare(*hostile))
    html.encode()
    read = Reader(html)
    assert read.tags <= ALLOWED, read.tags - ALLOWED
    assert read.whole
    names = {name for name, _ in read.attributes}
    assert not {name for name in names if name.startswith("on") or name in ("href", "src", "xlink:href", "srcset")}
    for _, value in read.attributes:
        assert "evil" not in (value or "")
        assert "://" not in (value or "")
    assert any("<script>alert(1)</script>" in text for text in read.texts), "it is there as a text"
    assert not re.search("[\x00-\x08\x1b\u202e\ud800-\udfff]", html)


def test_the_style_fetches_nothing_and_knows_dark_and_narrow_screens(hostile) -> None:
    html = page(compare(*hostile))
    style = html.partition("<style>")[2].partition("</style>")[0]
    assert "prefers-color-scheme:dark" in style
    assert "overflow-x:auto" in style
    assert not re.search(r"url\(|@import|//", style)
    policy = dict(Reader(html).attributes)["content"]
    assert "width=device-width" in policy
    assert "default-src 'none'" in html


def test_curves_settings_and_results_are_there(tmp_path) -> None:
    runs = [
        make_run(tmp_path / "a", validations=[(0, 3.25), (5, 2.5), (10, 2.75)]),
        make_run(tmp_path / "b", lr=0.123, validations=[(0, 3.25), (10, 1.125)]),
        make_run(tmp_path / "c", lr=0.5, validations=[], done=3),
    ]
    read = Reader(page(compare(*runs)))
    assert read.whole
    for text in ("A, step 5: 2.5000", "B, step 10: 1.1250", "0.123", "3.2500 → 2.5000", "broken off", "lr", "3/10"):
        assert text in read.texts, text
    paths = [value for name, value in read.attributes if name == "d" and value.startswith("M") and "L" in value]
    assert len(paths) == 2 + 3, "two curves of validations, three of updates"
    classes = {value for name, value in read.attributes if name == "class"}
    assert {"c0", "c1", "c2"} <= classes
    numbers = [tuple(map(float, pair.split())) for path in paths for pair in path[1:].split("L")]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in numbers)


def test_runs_without_any_loss(tmp_path) -> None:
    runs = [make_run(tmp_path / name, validations=[]) for name in ("a", "b")]
    for run in runs:
        (run / "history.jsonl").write_text("")
    read = Reader(page(compare(*runs)))
    assert read.whole
    assert read.texts.count("Nothing was recorded.") == 2
    assert "None." in read.texts, "no setting differs"
