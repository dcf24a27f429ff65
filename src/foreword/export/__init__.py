"""Export: write a prefix for another program. The registry is closed; a format is one file and one line here.

A package can add one without a change here: an entry point in the group `foreword.exports` (see `plugins`).
"""

from __future__ import annotations

from pathlib import Path

from foreword import plugins
from foreword.errors import ExportError
from foreword.export.base import Exporter
from foreword.export.transformers_cache import TransformersCache
from foreword.files import new_folder, writing
from foreword.prefix import Prefix

EXPORTERS: dict[str, type[Exporter]] = {kind.name: kind for kind in (TransformersCache,)}


def summaries() -> dict[str, str]:
    """Every format, Foreword's own and those of plugins, with its line for people."""
    group = "foreword.exports"
    return {name: plugins.find(group, "to", EXPORTERS, name).summary for name in plugins.names(group, EXPORTERS)}


def export_prefix(prefix: Prefix, to: str, output: str | Path) -> str:
    """Write `prefix` in the format `to` as the folder `output`, atomically. Returns how to run it.

    Raises `ConfigError` for an unknown format, `ExportError` if the format can't hold the prefix or `output` exists,
    `StorageError` if it can't be written.
    """
    exporter = plugins.find("foreword.exports", "to", EXPORTERS, to)()
    if (reason := exporter.refusal(prefix)) is not None:
        raise ExportError(f"the prefix can't be exported to {to}: {reason}")
    folder = Path(output)
    if "\0" in str(output):
        raise ExportError("the name of the output holds a null character; name a new folder")
    with writing(folder):
        taken = folder.exists()
    if taken:
        raise ExportError(f"{folder} exists; name a new folder")
    with new_folder(folder) as temporary:
        exporter.write(prefix, temporary)
    return exporter.usage(folder)


__all__ = ["EXPORTERS", "Exporter", "export_prefix", "summaries"]
