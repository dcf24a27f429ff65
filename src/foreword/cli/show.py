"""`foreword show`: what is in a saved prefix."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from foreword.cli import common


def command(
    prefix: Annotated[str, typer.Argument(help="A saved prefix's folder.")],
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """Show a saved prefix: shapes, the base it belongs to, and how it was trained. Checks every tensor.

    Example: foreword show runs/e2e/prefix
    """
    from foreword.format import read_manifest
    from foreword.prefix import Prefix

    loaded = Prefix.load(prefix)
    manifest = read_manifest(Path(prefix))
    if json:
        common.print_json(manifest)
        return
    record, base = manifest["record"], manifest["base"]
    table = Table(show_header=False, title=Text(prefix))
    table.add_column()
    table.add_column(overflow="fold")
    first = next(iter(loaded.slots.values()))
    lengths = {kv.length for kv in loaded.slots.values()}
    facts = {
        "virtual tokens": " to ".join(str(n) for n in sorted({min(lengths), max(lengths)})),
        "slots": f"{len(loaded.slots)}: {', '.join(list(loaded.slots)[:3])}{', …' if len(loaded.slots) > 3 else ''}",
        "key, value": f"{list(first.key.shape)}, {list(first.value.shape)} {str(first.key.dtype).removeprefix('torch.')}",
        "numbers": f"{loaded.num_parameters:,}",
        "stored": ", ".join(_forms(manifest)),
        "size": f"{common.kilobytes(Path(prefix)):,.0f} KB",
        "position offset": str(loaded.position_offset),
        "merge": loaded.merge,
        "base": f"{base['source']} ({base['architecture']})",
        "base weights": f"{base['weights']}"
        + (f", dequantised {base['quantisation']}" if base["quantisation"] else ""),
        "method": loaded.method,
        "digest": manifest["digest"],
    }
    shown = ("template", "step", "validation_loss", "training_rows", "trained_parameters")
    facts |= {name.replace("_", " "): repr(record[name]) for name in shown if name in record}
    for name, fact in facts.items():
        table.add_row(name, Text(fact))
    common.out().print(table)


def _forms(manifest: dict[str, Any]) -> list[str]:
    """How the slots' tensors are stored: plain, or the encodings they have."""
    specs = [spec for pair in manifest["slots"].values() for spec in pair.values()]
    kinds = {" ".join(str(part) for part in (spec.get("encoding", "plain"), spec.get("rank", ""))) for spec in specs}
    return sorted(kind.strip() for kind in kinds)
