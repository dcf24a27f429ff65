"""docs/models.md is what the suite found, and nothing is missing from it."""

from __future__ import annotations

import matrix
from tiny import BOTH, CASES, DECODERS, UNSUPPORTED, case_name


def test_models_page_is_rendered_from_the_cells() -> None:
    cells = matrix.load()
    assert matrix.PAGE.read_text(encoding="utf-8") == matrix.render(cells)
    assert set(cells) == {case_name(case) for case in CASES} | {"refused"}
    assert set(cells["refused"]) == set(UNSUPPORTED)
    caches = {"dynamic cache", "static cache"}
    for case in CASES:
        expected = set(matrix.COLUMNS) - (set() if case[0] in DECODERS + BOTH else caches)
        assert set(cells[case_name(case)]) == expected, case
