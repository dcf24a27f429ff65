"""`foreword show`: what is in a saved prefix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from foreword.cli import common

if TYPE_CHECKING:
    from foreword.prefix import Prefix


def command(
    prefix: common.SavedPrefix,
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """Show a saved prefix: shapes, the base it belongs to, and how it was trained. Checks every tensor.

    Example: foreword show runs/e2e/prefix
    """
    from foreword.prefix import Prefix
    from foreword.prefix.stored import read_manifest

    loaded = Prefix.load(prefix)
    manifest = read_manifest(Path(prefix))
    if json:
        common.print_json(manifest)
        return
    record, base = manifest["record"], loaded.base
    table = Table(show_header=False, title=Text(common.printable(prefix)))
    table.add_column()
    table.add_column(overflow="fold")
    lengths = {kv.length for kv in loaded.slots.values()} or {loaded.length}
    names = list(loaded.slots) or list(loaded.additions)
    facts = {
        "virtual tokens": " to ".join(str(n) for n in sorted({min(lengths), max(lengths)})),
        "slots": f"{len(names)}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}" if names else "none",
        **_shapes(loaded),
        "numbers": f"{loaded.num_parameters:,}",
        "stored": ", ".join(_forms(manifest)) or "plain",
        "size": f"{common.kilobytes(Path(prefix)):,.0f} KB",
        "position offset": str(loaded.position_offset),
        "merge": loaded.merge,
        "exports as": loaded.kind.export,
        "base": f"{base.source} ({base.architecture})",
        "base weights": f"{base.weights}" + (f", dequantised {base.quantisation}" if base.quantisation else ""),
        "method": loaded.method,
        "format": _format(manifest["version"]),
        "digest": loaded.digest,
    }
    shown = ("template", "step", "validation_loss", "training_rows", "trained_parameters")
    facts |= {name.replace("_", " "): repr(record[name]) for name in shown if name in record}
    for name, fact in facts.items():
        table.add_row(name, Text(common.printable(fact)))
    common.out().print(table)


def _format(version: int) -> str:
    """The format version, and for an older one what its digest covers."""
    from foreword.prefix.stored import COVERED, VERSION

    older = f", whose digest covers {COVERED} alone; save it again to protect all of it"
    return f"version {version}" + (older if version < VERSION else "")


def _shapes(prefix: Prefix) -> dict[str, str]:
    """The shapes of the first slot, and of the extra tensors by kind."""
    facts = {}
    if prefix.slots:
        first = next(iter(prefix.slots.values()))
        kind = str(first.key.dtype).removeprefix("torch.")
        facts["key, value"] = f"{list(first.key.shape)}, {list(first.value.shape)} {kind}"
    for name, tensor in prefix.extras.items():
        kind = name.split(".")[1] if name.startswith("condition.") else name.rpartition(".")[2]
        facts.setdefault(kind.replace("_", " "), str(list(tensor.shape)))
    return facts


def _forms(manifest: dict[str, Any]) -> list[str]:
    """How the slots' tensors are stored: plain, or the encodings they have."""
    specs = [spec for pair in manifest["slots"].values() for spec in pair.values()]
    kinds = {" ".join(str(part) for part in (spec.get("encoding", "plain"), spec.get("rank", ""))) for spec in specs}
    return sorted(kind.strip() for kind in kinds)
