"""What commands print, laid out for the terminal's width: no word is broken, whatever the width."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.cells import cell_len
from rich.measure import Measurement
from rich.table import Table

from foreword.cli import common

NARROWEST = 16  # columns that a text gets beside its name
_UNBOUNDED = 10_000


def print_table(table: Table) -> None:
    """Print `table` as it is if its widest cells fit side by side; else each row as a list of facts."""
    console = common.out()
    for column in table.columns:
        column.no_wrap = True
    if Measurement.get(console, console.options.update(width=_UNBOUNDED), table).maximum <= console.width:
        console.print(table)
        return
    if table.title is not None:
        print_text(str(table.title))
    titles = [str(column.header) for column in table.columns]
    for row in zip(*(column.cells for column in table.columns), strict=True):
        console.print()
        print_facts((title, cell) for title, cell in zip(titles, row, strict=True) if str(cell))
    console.print()


def print_facts(facts: Iterable[tuple[str, Any]], indent: int = 0, aligned: int = 0) -> None:
    """Print names and texts in two columns; a long text goes on below its beginning.

    indent: spaces in front. aligned: the least width of the names.
    """
    entries = [(common.printable(name), str(text)) for name, text in facts]
    width = max([aligned, *(len(name) for name, _ in entries)])
    for name, text in entries:
        print_text(text, f"{' ' * indent}{name:<{width}}  ")


def print_text(text: str, first: str = "") -> None:
    """Print `text` behind `first`, wrapped between words. One that is longer than a line, such as a path, is whole."""
    console, following = common.out(), " " * len(first)
    room = max(NARROWEST, console.width - len(first))
    for line in common.printable(text, keep="\n").split("\n"):
        for part in _wrapped(line, room):
            console.print((first + part).rstrip(), soft_wrap=True)
            first = following


def _wrapped(line: str, room: int) -> list[str]:
    """Return the parts of a line that take at most `room` columns each."""
    parts = [""]
    for word in re.findall(r"\s*\S+", line):
        if parts[-1] and cell_len(parts[-1] + word) > room:
            parts.append(word.lstrip())
        else:
            parts[-1] += word
    return parts
