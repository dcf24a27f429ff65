"""The prefixes that a command is given, and which of them each input uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.cli import common
from foreword.errors import ConfigError

if TYPE_CHECKING:
    from foreword.base import Base
    from foreword.prefix import Prefix

FIELD = "prefix"  # the column that names a row's prefix, where there are several


def prefix_folder(path: str) -> str:
    """Return the folder of a prefix, of a run's, or of a version in the store, which stays until the command ends.

    See `foreword.prefix.places`, which is imported when it is needed: it imports PyTorch.
    """
    from foreword.prefix.places import located

    return common.hold(located(path))


def how_to_use(folder: str, record: Mapping[str, Any], data: str | None = None, given: str | None = None) -> str:
    """Return a command that works when it is pasted.

    data: a file of rows, for what has a trained head. given: how the user named the prefix: a reference is kept.
    """
    from foreword.base.rendering import recorded_fields
    from foreword.store.usage import generate_command
    from foreword.versions.finding import means_store

    named = given if given is not None and means_store(given) else folder
    head = (Path(folder).absolute().parent / "head").is_dir()
    return generate_command(named, recorded_fields(record), head=head, data=data)


class Prefixes:
    """Saved prefixes by name. paths: folders of prefixes or runs. Two of one name are called by their paths."""

    def __init__(self, paths: Sequence[str]) -> None:
        from foreword.prefix.places import short_name

        self.paths = {path: prefix_folder(path) for path in paths}
        self.names: dict[str, str] = {}
        for path in self.paths:
            if (name := short_name(path)) in self.names:
                name = path
            self.names[name] = path

    @property
    def first(self) -> str | None:
        return next(iter(self.paths.values()), None)

    def templates(self) -> list[str | None]:
        """Return the template that each was trained with."""
        from foreword.prefix.records import recorded_template
        from foreword.prefix.stored import read_manifest

        return [recorded_template(read_manifest(Path(folder))["record"]) for folder in self.paths.values()]

    def load(self, base: Base) -> dict[str | None, Prefix | None]:
        """Return the prefixes by name, None for the plain base. Raises `PrefixMismatchError` if one doesn't fit."""
        from foreword.prefix import Prefix

        loaded: dict[str | None, Prefix | None] = {None: None}
        for name, path in self.names.items():
            prefix = loaded[name] = Prefix.load(self.paths[path])
            base.require_fit(prefix)
        return loaded

    def of_inputs(self, inputs: Sequence[Any], field: str | None) -> list[str | None]:
        """Return the name of the prefix of each input. Raises `ConfigError` where that can't be told."""
        if field is not None or (len(self.names) > 1 and any(_column(row, FIELD) is not None for row in inputs)):
            return [self._named(row, field or FIELD, number) for number, row in enumerate(inputs, start=1)]
        names: list[str | None] = list(self.names) or [None]
        if len(names) == 1:
            return names * len(inputs)
        if len(names) != len(inputs):
            raise ConfigError(
                "--prefix",
                f"{len(names)} prefixes for {len(inputs)} inputs; give one for all, one for each, or rows with a "
                f"column that names each row's ({', '.join(self.names)}), and the column's name in --prefix-field",
            )
        return names

    def _named(self, row: Any, field: str, number: int) -> str | None:
        if not isinstance(row, Mapping) or field not in row:
            raise ConfigError("--prefix-field", f"input {number} has no field {field!r}")
        value = row[field]
        if value is None or value == "":
            return None
        for name, path in self.names.items():
            if value in (name, path, self.paths[path]):
                return name
        raise ConfigError(
            "--prefix-field",
            f"input {number}: {field} {value!r:.60} is none of the prefixes: {', '.join(self.names) or 'none given'}",
        )


def _column(row: Any, field: str) -> Any:
    return row.get(field) if isinstance(row, Mapping) else None
