"""How results look in an interpreter and in a notebook: a title and a few facts, never tensors."""

from __future__ import annotations

from html import escape
from itertools import groupby
from typing import Any

WIDEST = 110  # characters of a line
_HIDDEN = str.maketrans(dict.fromkeys((*range(32), 127, *range(128, 160)), "�"))


class Shown:
    """A value with a `repr` of one to five lines and a table for notebooks. Subclasses define `_shown`."""

    def _shown(self) -> tuple[str, dict[str, Any]]:
        """Return a title, and up to four facts by name."""
        raise NotImplementedError

    def __repr__(self) -> str:
        title, facts = self._shown()
        return "\n".join([_line(title), *(_line(f"  {name}: {value}") for name, value in facts.items())])

    def _repr_html_(self) -> str:
        """Return a small table. Every text is escaped, since it may come from a file."""
        title, facts = self._shown()
        rows = "".join(
            f"<tr><th style='text-align:left'>{_cell(name)}</th><td style='text-align:left'>{_cell(value)}</td></tr>"
            for name, value in facts.items()
        )
        return f"<table><caption style='text-align:left'><b>{_cell(title)}</b></caption>{rows}</table>"


def grouped(names: Any) -> str:
    """Return names such as decoder.0, decoder.1 … as ranges: "decoder.0–29"."""
    parts = []
    for role, entries in groupby(names, key=lambda name: name.rpartition(".")[0]):
        numbers = [int(number) if (number := name.rpartition(".")[2]).isdecimal() else -1 for name in entries]
        for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
            found = [number for _, number in run]
            parts.append(f"{role}.{found[0]}" + (f"–{found[-1]}" if len(found) > 1 else ""))
    return ", ".join(parts[:4]) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")


def _line(text: str) -> str:
    text = str(text).translate(_HIDDEN)
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"


def _cell(value: Any) -> str:
    return escape(_line(str(value)))
