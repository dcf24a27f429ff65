"""How versions of a store look in the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from foreword.cli import common, tables
from foreword.store.usage import generate_command

if TYPE_CHECKING:
    from foreword.store import Entry
    from foreword.versions.version import Version


def print_entries(entries: Sequence[Entry]) -> None:
    """Print a table of versions."""
    table = common.table()
    for column in ("name", "version", "base", "method", "KB", "metrics", "tags", "age"):
        table.add_column(column, justify="right" if column == "KB" else "left")
    for entry in entries:
        table.add_row(*_row(entry))
    tables.print_table(table)


def print_version(version: Version, tags: Sequence[str], reference: str) -> None:
    """Print what is known of a version, and how to run it."""
    facts = version.facts
    told = {
        "name": version.name,
        "version": f"sha256:{version.digest}",
        "tags": ", ".join(tags) or "none",
        "added": f"{version.created:%Y-%m-%d %H:%M} UTC",
        "base": version.base_name,
        "method": facts["method"],
        "virtual tokens": facts["length"],
        "size": f"{facts['bytes'] / 1000:,.0f} KB",
        "task": facts.get("task"),
        "template": None if facts.get("template") is None else repr(facts["template"]),
        "metrics": _metrics_text(facts["metrics"], " "),
        "licence": facts.get("licence") or "none given",
        "description": facts.get("description"),
        "files": ", ".join(version.files),
    }
    tables.print_facts((key, value) for key, value in told.items() if value not in (None, ""))
    common.out().print(f"use it: {usage(version, reference)}", soft_wrap=True)


def as_json(entry: Entry) -> dict[str, Any]:
    """Return a version in a list as JSON values."""
    version = entry.version
    return {
        "name": version.name,
        "digest": version.digest,
        "tags": list(entry.tags),
        "created": version.created.isoformat(),
        **{key: value for key, value in version.facts.items() if key != "name"},
    }


def _row(entry: Entry) -> list[str]:
    version, facts = entry.version, entry.version.facts
    return [
        version.name,
        version.digest[:12],
        version.base_name,
        f"{facts['method']}, {facts['length']} tokens",
        f"{facts['bytes'] / 1000:,.0f}",
        _metrics_text(facts["metrics"], "\n"),
        ", ".join(entry.tags),
        age(version.created),
    ]


def _metrics_text(metrics: dict[str, Any], between: str) -> str:
    return between.join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:3])


def age(moment: datetime) -> str:
    """Return how long ago something was, in its largest unit."""
    seconds = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    for name, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {name}"
    return "now"


def usage(version: Version, reference: str) -> str:
    """Return the command that runs a version."""
    return generate_command(reference, version.facts.get("fields") or (), head=version.has_head)
