"""Import: make a prefix of what another program saved. The registry is closed; a format is one file and one line."""

from __future__ import annotations

from pathlib import Path

from foreword.base import Base
from foreword.errors import ConfigError, ImportFormatError
from foreword.export.base import Importer
from foreword.export.mlx_import import MlxImporter
from foreword.export.peft_import import PeftAdapter
from foreword.prefix import Prefix

IMPORTERS: dict[str, type[Importer]] = {kind.name: kind for kind in (PeftAdapter, MlxImporter)}


def importer_of(folder: str | Path, source: str | None = None) -> Importer:
    """Return the importer called `source`, or the one that recognises `folder`.

    Raises `ConfigError` for an unknown name, `ImportFormatError` if none recognises the folder.
    """
    if source is not None:
        if source not in IMPORTERS:
            raise ConfigError("from", f"{source!r} is not known; choose from {', '.join(IMPORTERS)}")
        return IMPORTERS[source]()
    if not Path(folder).is_dir():
        raise ImportFormatError(f"{folder} is no folder")
    for kind in IMPORTERS.values():
        if kind().recognises(Path(folder)):
            return kind()
    raise ImportFormatError(
        f"{folder} is in no format that is known here ({', '.join(IMPORTERS)}); name it with --from"
    )


def import_prefix(folder: str | Path, base: Base, source: str | None = None) -> Prefix:
    """Return the prefix that another program saved in `folder`.

    source: the name of a format; None: the one that recognises the folder.
    Raises `ConfigError`, `ImportFormatError`, `PrefixMismatchError` for another base.
    """
    prefix = importer_of(folder, source).read(Path(folder), base)
    base.require_fit(prefix)
    return prefix
