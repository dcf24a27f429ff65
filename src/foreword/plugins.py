"""What other packages add: methods, objectives and exporters, by entry points.

    [project.entry-points."foreword.methods"]
    mine = "my_package.my_method:METHOD"

A name of Foreword's own registry always wins. Only the package that declares the name asked for is imported. Names in
settings never are import paths. What a plugin made is named in the saved record (`origin`), so that a reader knows what
to install.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from foreword.errors import ConfigError, DependencyError

T = TypeVar("T")


def find(group: str, field: str, known: Mapping[str, T], name: str) -> T:
    """The entry of `known` called `name`, else the one that a package declares in `group`.

    field: the setting that names it. Raises `ConfigError` listing the names there are, `DependencyError` if the
    package that declares it can't be imported.
    """
    if name in known:
        return known[name]
    entry = _declared(group).get(name)
    if entry is None:
        raise ConfigError(field, f"{name!r} is not known; choose from {', '.join(names(group, known))}")
    try:
        loaded: T = entry.load()
    except (ImportError, AttributeError) as error:
        raise DependencyError(
            f"{field} {name!r} of the package {_package(entry)} can't be imported: {error}"
        ) from error
    return loaded


def names(group: str, known: Mapping[str, object]) -> list[str]:
    """Foreword's own names, then those that packages declare."""
    return [*known, *sorted(name for name in _declared(group) if name not in known)]


def origin(group: str, known: Mapping[str, object], name: str) -> str | None:
    """The package and version that `name` comes from; None for Foreword's own."""
    entry = None if name in known else _declared(group).get(name)
    return None if entry is None else _package(entry)


def _declared(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}


def _package(entry: EntryPoint) -> str:
    return entry.value.partition(":")[0] if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
