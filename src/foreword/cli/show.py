"""`foreword show`: what is in a saved prefix, and how to use it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.cli import common, tables
from foreword.cli.prefixes import how_to_use, prefix_folder
from foreword.shown import grouped

if TYPE_CHECKING:
    from foreword.prefix import Prefix


def command(
    prefix: common.SavedPrefix,
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """Show a saved prefix: shapes, the base it belongs to, how it was trained, and how to use it. Checks every tensor.

    Example: foreword show runs/e2e
    """
    from foreword.prefix import Prefix
    from foreword.prefix.records import public_prefix
    from foreword.prefix.stored import read_manifest

    folder = prefix_folder(prefix)
    loaded = public_prefix(Prefix.load(folder))
    manifest = read_manifest(Path(folder))
    if json:
        common.print_json(manifest)
        return
    facts = _shape(loaded, manifest, folder) | _origin(loaded, folder) | _training(loaded, folder)
    common.out().print(prefix, soft_wrap=True)
    tables.print_facts(facts.items())
    common.out().print(f"use it: {how_to_use(folder, loaded.record, given=prefix)}", soft_wrap=True)


def _shape(loaded: Prefix, manifest: dict[str, Any], folder: str) -> dict[str, Any]:
    """What it is made of."""
    lengths = {kv.length for kv in loaded.slots.values()} or {loaded.length}
    names = list(loaded.slots) or list(loaded.additions)
    return {
        "virtual tokens": " to ".join(str(n) for n in sorted({min(lengths), max(lengths)})),
        "slots": f"{len(names)}: {grouped(names)}" if names else "none",
        **_tensors(loaded),
        "numbers": f"{loaded.num_parameters:,}",
        "stored": ", ".join(_forms(manifest)) or "plain",
        "size": f"{common.kilobytes(Path(folder)):,.0f} KB",
        "position offset": loaded.position_offset,
        "merge": loaded.merge,
        "exports as": loaded.kind.export,
        "format": _format(manifest["version"]),
        "digest": _short(loaded.digest),
    }


def _origin(loaded: Prefix, folder: str) -> dict[str, Any]:
    """Which base it belongs to, and when it was saved."""
    from foreword.prefix.stored import MANIFEST

    base = loaded.base
    saved = datetime.fromtimestamp((Path(folder) / MANIFEST).stat().st_mtime, UTC)
    quantised = f", dequantised {base.quantisation}" if base.quantisation else ""
    return {
        "base": f"{base.source} ({base.architecture})",
        "base weights": f"{_short(base.weights)}{quantised}",
        "method": loaded.method,
        "saved": f"{saved:%Y-%m-%d %H:%M} UTC",
    }


def _training(loaded: Prefix, folder: str) -> dict[str, Any]:
    """How it was trained, as far as its record says."""
    from foreword.prefix.records import recorded_config

    record, config = loaded.record, recorded_config(loaded.record)
    facts: dict[str, Any] = {}
    for name, source in (_mapping(record.get("data"))).items():
        given = _mapping(source)
        rows = f", {given['rows']:,} rows" if isinstance(given.get("rows"), int) else ""
        facts[f"{name} data"] = f"{_name(given.get('name'))}{rows}"
    rendering = _mapping(record.get("rendering"))
    if rendering:
        turns = f", {rendering['turns']} turns learned" if "turns" in rendering else ""
        facts["rows were"] = f"{rendering.get('shape')}{turns}"
    if "template" in record:
        facts["template"] = repr(record["template"])
    wanted = {"learning rate": "lr", "batch size": "batch_size", "task": "task", "objective": "objective"}
    facts |= {name: config[key] for name, key in wanted.items() if config.get(key) is not None}
    if "validation_loss" in record:
        loss = record["validation_loss"]
        shown = f"{loss:.4f}" if isinstance(loss, int | float) else str(loss)
        facts["validation loss"] = f"{_first_loss(folder)}{shown} after step {record.get('step')}"
    if "trained_parameters" in record:
        facts["trained parameters"] = record["trained_parameters"]
    return facts


def _first_loss(folder: str) -> str:
    """The loss that the run began with, if the prefix lies in its folder."""
    from foreword.errors import CheckpointError
    from foreword.training.folder import RunFolder

    try:
        rows = RunFolder(Path(folder).absolute().parent).rows()
    except CheckpointError:
        return ""
    first = next((row["validation_loss"] for row in rows if "validation_loss" in row), None)
    return "" if first is None else f"{first:.4f} → "


def _name(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{task}: {name}" for task, name in value.items())
    return "held out of the training data" if value is None else str(value)


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _short(digest: str | None) -> str:
    """The beginning of a digest; --json shows all of it."""
    return "unknown" if digest is None else digest[:19]


def _format(version: int) -> str:
    """The format version, and for an older one what its digest covers."""
    from foreword.prefix.stored import COVERED, VERSION

    older = f", whose digest covers {COVERED} alone; save it again to protect all of it"
    return f"version {version}" + (older if version < VERSION else "")


def _tensors(prefix: Prefix) -> dict[str, str]:
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
