"""A comparison as one HTML file: no script, nothing from outside, and every text of a run escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from foreword.runs.comparing import Comparison, value_texts
from foreword.runs.drawing import chart, key, letter
from foreword.runs.history import Point, thinned

_LONGEST = 2000  # characters of a value
_POINTS = 250  # of a curve of updates, which is drawn as means
# Control characters, halves of surrogate pairs, and marks that turn the reading direction
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
:root{color-scheme:light dark;--back:#fff;--fore:#1b1b1f;--dim:#5c5f66;--line:#d9dbe0;
--c0:#0b62b8;--c1:#c2410c;--c2:#15803d;--c3:#9333ea;--c4:#b91c5c;--c5:#7a5b00}
@media (prefers-color-scheme:dark){:root{--back:#16171a;--fore:#e7e8ea;--dim:#a2a6ae;--line:#3a3d44;
--c0:#6db3ff;--c1:#ff9d66;--c2:#5fd38a;--c3:#c79bff;--c4:#ff85b0;--c5:#e3c04d}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1rem;background:var(--back);color:var(--fore);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}
.wide{overflow-x:auto}table{border-collapse:collapse;min-width:100%;font-size:.9rem}
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem;border-bottom:1px solid var(--line);
min-width:6rem;max-width:24rem;white-space:pre-wrap}
tbody th{position:sticky;left:0;background:var(--back);font-weight:normal;color:var(--dim)}
svg{display:block;width:100%;height:auto}svg text{font-size:12px;fill:var(--dim)}
svg path{fill:none;stroke-width:2}svg .grid{stroke:var(--line);stroke-width:1}
svg .name{font-weight:bold;fill:var(--fore)}
.key{display:inline-block;width:34px;height:12px;vertical-align:middle;margin-right:.4rem}
.legend{list-style:none;padding:0}.caution{border-left:4px solid var(--c1);padding:.2rem .8rem}
@media (max-width:40rem){svg text{font-size:16px}}
summary{cursor:pointer}small{color:var(--dim)}
""" + "".join(f".c{n} path{{stroke:var(--c{n})}}.c{n} circle{{fill:var(--c{n})}}\n" for n in range(6))


def page(comparison: Comparison) -> str:
    """Return the HTML file of a comparison. It holds the runs' settings, paths among them."""
    names = [f"{letter(number)} {name}" for number, name in enumerate(comparison.names)]
    settings = {name: value_texts(values, _LONGEST) for name, values in comparison.settings.items()}
    shared = {name: value_texts([value], _LONGEST) for name, value in comparison.shared.items()}
    title = "Runs: " + ", ".join(comparison.names)
    body = [
        f"<h1>{text(title)}</h1>",
        _legend(comparison),
        *(f'<p class="caution">{text(caution)}</p>' for caution in comparison.cautions),
        _charts("Validation loss", [each.validation for each in comparison.curves], marked=True),
        _charts("Training loss", [thinned(each.training, _POINTS) for each in comparison.curves], marked=False),
        "<h2>Results</h2>",
        _table(names, comparison.results.items()),
        "<h2>Settings that differ</h2>",
        _table(names, settings.items()) if settings else "<p>None.</p>",
        f"<details><summary>{len(shared)} settings that are the same</summary>",
        _table(["all"], shared.items()),
        "</details>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def text(value: Any) -> str:
    """Return a text for HTML, in an element or a quoted attribute; what can't be seen becomes �."""
    return escape(_HIDDEN.sub("�", str(value)))


def _legend(comparison: Comparison) -> str:
    entries = [
        f"<li>{key(number)}<b>{letter(number)}</b> {text(name)} <small>{text(run.path)}</small></li>"
        for number, (name, run) in enumerate(zip(comparison.names, comparison.runs, strict=True))
    ]
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _charts(title: str, series: Sequence[Sequence[Point]], marked: bool) -> str:
    drawn = chart(f"{title} by step, in nats", series, marked) or "<p>Nothing was recorded.</p>"
    return f"<h2>{title}</h2>\n{drawn}"


def _table(names: Iterable[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in names)
    lines = [
        f'<tr><th scope="row">{text(name)}</th>{"".join(f"<td>{text(value)}</td>" for value in values)}</tr>'
        for name, values in rows
    ]
    return (
        f'<div class="wide"><table><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )
