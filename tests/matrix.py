"""What the parity suite found, cell by cell: recorded while it runs, kept in docs/models.json, rendered to
docs/models.md.

`make models` runs the suite and writes both. Every later run compares its cells with the file.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers

import sweep_page

DOCS = Path(__file__).parent.parent / "docs"
CELLS, PAGE = DOCS / "models.json", DOCS / "models.md"
COLUMNS = {
    "prefix": "prefix",
    "mixed rows": "mixed rows",
    "padding": "padding",
    "checkpointing": "checkpointing",
    "dynamic cache": "dynamic cache",
    "static cache": "static cache",
    "backend": "backend on CPU",
    "exports": "exports",
}
Cells = dict[str, dict[str, str]]


def load() -> Cells:
    return json.loads(CELLS.read_text(encoding="utf-8")) if CELLS.is_file() else {}


def stale(found: Cells) -> list[str]:
    """Cells of this run that docs/models.json says otherwise."""
    kept = load()
    return [
        f"{case}/{column}: {value!r}, the file says {kept.get(case, {}).get(column)!r}"
        for case, cells in sorted(found.items())
        for column, value in sorted(cells.items())
        if kept.get(case, {}).get(column) != value
    ]


def write(found: Cells) -> None:
    """Put this run's cells into docs/models.json and render docs/models.md."""
    cells = load()
    for case, own in found.items():
        cells.setdefault(case, {}).update(own)
    cells["versions"] = {"transformers": transformers.__version__, "torch": torch.__version__}
    CELLS.write_text(json.dumps(cells, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    write_page()


def write_page() -> None:
    """Render docs/models.md from docs/models.json and docs/verified.json."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    return render(load()) + sweep_page.render(sweep_page.load())


def render(cells: Cells) -> str:
    from tiny import BOTH, CACHED, CASES, ENCODERS, HYBRIDS, VISION, case_name

    groups = {
        "Decoders": lambda kind: kind not in BOTH + CACHED + ENCODERS + HYBRIDS + VISION,
        "Hybrids (a prefix on their attention layers)": lambda kind: kind in HYBRIDS,
        "Decoders with attention code of their own (through `past_key_values`)": lambda kind: kind in CACHED,
        "Encoders": lambda kind: kind in ENCODERS,
        "Encoder–decoders": lambda kind: kind in BOTH,
        "Vision encoders": lambda kind: kind in VISION,
    }
    text = INTRODUCTION.format(**cells["versions"])
    for title, belongs in groups.items():
        text += f"\n## {title}\n\n| model_type | {' | '.join(COLUMNS.values())} |\n|---{'|---' * len(COLUMNS)}|\n"
        for case in CASES:
            if belongs(case[0]):
                own = cells.get(case_name(case), {})
                text += f"| {case_name(case)} | {' | '.join(own.get(column, '–') for column in COLUMNS)} |\n"
    return (
        text
        + "\n## Refused, of what the suite tries\n\n"
        + "".join(f"- {name}: {error}\n" for name, error in cells["refused"].items())
    )


INTRODUCTION = """# Models

Written by `make models`; no cell is typed by hand. First come the architectures of the table, which are always
supported; then [every other class of Transformers](#outside-the-table-tried-at-load), tried as `foreword.load` tries
it.

The tables' cells are the results of `tests/parity` with Transformers {transformers} and torch {torch}, and every later
run of the suite is held to them. Each row is a tiny random model of that `model_type` with its weights scaled up, in
float32 on CPU. A name with a dash is a variant: a window or chunk of 8 tokens, ALiBi, Falcon's newer layout.

- **prefix**: outputs and prefix gradients equal the model's own eager attention over the concatenated keys (or its
  `past_key_values`), to 1e-4 relative, with padding on either side; leaving out the prefix, the mask or the offset
  fails by a hundred times that.
- **mixed rows**: rows with different prefixes, and rows without one, in one batch equal separate runs.
- **padding**: a row's answer is the same alone and padded in company.
- **checkpointing**: activation checkpointing gives the same loss and gradients, also when backward runs after the
attach.
- **dynamic cache, static cache**: generated tokens equal the reference's.
- **exports**: what the tensors can be handed to as they are.
"""
