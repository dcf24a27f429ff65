"""Interchange: write a prefix for another program, and read one that another program saved.

The registries are closed; a format is one file and one line, here or in `importing`.

A package can add one without a change here: an entry point in the group `foreword.exports` (see `plugins`).
"""

from __future__ import annotations

from pathlib import Path

from foreword import plugins
from foreword.base import Base
from foreword.errors import ExportError
from foreword.export.asking import PROGRAM, program
from foreword.export.base import BaseFiles, Exporter, Importer
from foreword.export.importing import IMPORTERS, import_prefix
from foreword.export.llamacpp import LlamaCpp
from foreword.export.mlx import Mlx
from foreword.export.peft import Peft
from foreword.export.transformers_cache import TransformersCache
from foreword.files import new_folder, write_text, writing
from foreword.prefix import Prefix
from foreword.prefix.records import public_prefix

EXPORTERS: dict[str, type[Exporter]] = {kind.name: kind for kind in (TransformersCache, Peft, LlamaCpp, Mlx)}


def summaries() -> dict[str, str]:
    """Every format, Foreword's own and those of plugins, with its line for people."""
    group = "foreword.exports"
    return {name: plugins.find(group, "to", EXPORTERS, name).summary for name in plugins.names(group, EXPORTERS)}


def export_prefix(prefix: Prefix, to: str, output: str | Path, base: Base | str | None = None) -> str:
    """Write `prefix` in the format `to` as the folder `output`, atomically. Returns how to run it.

    base: the prefix's base, or its name, of which some formats need configuration and tokenizer; None: the name that
    the prefix tells.

    Raises `ConfigError` for an unknown format, `ExportError` if the format can't hold the prefix or `output` exists,
    `StorageError` if it can't be written.
    """
    exporter = plugins.find("foreword.exports", "to", EXPORTERS, to)()
    known = BaseFiles.of(base) if isinstance(base, Base) else BaseFiles(base or prefix.base.source)
    prefix = public_prefix(prefix)  # an export is passed on
    if (reason := exporter.refusal(prefix, known)) is not None:
        raise ExportError(f"the prefix can't be exported to {to}: {reason}")
    folder = Path(output)
    if "\0" in str(output):
        raise ExportError("the name of the output holds a null character; name a new folder")
    with writing(folder):
        taken = folder.exists()
    if taken:
        raise ExportError(f"{folder} exists; name a new folder")
    with new_folder(folder) as temporary:
        exporter.write(prefix, known, temporary)
    usage = exporter.usage(folder, known)
    if exporter.is_program:
        write_text(folder / PROGRAM, program(usage, folder))
    return usage


__all__ = [
    "EXPORTERS",
    "IMPORTERS",
    "BaseFiles",
    "Exporter",
    "Importer",
    "export_prefix",
    "import_prefix",
    "summaries",
]
