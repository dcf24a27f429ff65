"""Where a prefix lies: in its own folder, or in that of its run; and what it is called by."""

from __future__ import annotations

from pathlib import Path

from foreword.prefix.stored import MANIFEST


def prefix_folder(path: str) -> str:
    """Return the folder of a prefix: `path`, or the prefix within it if it is a run's folder."""
    inner = Path(path) / "prefix"
    return str(inner) if not (Path(path) / MANIFEST).exists() and (inner / MANIFEST).exists() else path


def short_name(path: str) -> str:
    """Return a prefix's short name: that of its folder, or of its run's."""
    folder = Path(prefix_folder(path)).absolute()
    return folder.parent.name if folder.name == "prefix" else folder.name
