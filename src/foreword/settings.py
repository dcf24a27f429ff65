"""Reading, checking and building settings dataclasses: what every one in `config` shares."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from foreword.errors import ConfigError

Config = TypeVar("Config")


def read_settings(path: str | Path) -> dict[str, Any]:
    """The mapping in a .toml, .yaml, .yml or .json file. Raises `ConfigError` naming file and line."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(file), f"can't be read: {error}") from error
    value = _parse(file, text)
    if not isinstance(value, dict):
        raise ConfigError(str(file), "must hold a mapping of settings")
    return value


def _parse(file: Path, text: str) -> Any:
    import yaml

    try:
        if file.suffix == ".toml":
            return tomllib.loads(text)
        if file.suffix in (".yaml", ".yml"):
            return yaml.safe_load(text)
        if file.suffix == ".json":
            return json.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise ConfigError(str(file), " ".join(str(error).split())) from error
    raise ConfigError(str(file), "must end in .toml, .yaml, .yml or .json")


def build(kind: type[Config], values: Mapping[str, Any], origin: str = "settings") -> Config:
    """Make a config from plain values. Unknown names raise `ConfigError` with the nearest known one."""
    known = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(known)})"
            raise ConfigError(f"{origin}: {name}", f"is not a setting{hint}")
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return kind(**tuples)


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values; `build` takes them back."""
    return {item.name: _plain(getattr(config, item.name)) for item in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple | list) else value


def check_types(config: Any) -> None:
    """Raise `ConfigError` for the first field whose value is not of its declared type; whole numbers
    become floats where a float is declared."""
    hints = typing.get_type_hints(type(config))
    for item in dataclasses.fields(config):
        value, hint = getattr(config, item.name), hints[item.name]
        if type(value) is int and _accepts(1.0, hint) and not _accepts(1, hint):
            object.__setattr__(config, item.name, float(value))
        elif isinstance(value, Path) and _accepts("", hint):
            object.__setattr__(config, item.name, str(value))
        elif isinstance(value, str) and _is_number(value) and _accepts(1.0, hint) and not _accepts("", hint):
            object.__setattr__(config, item.name, float(value))  # YAML reads 6e-2 as text
        elif not _accepts(value, hint):
            raise ConfigError(item.name, f"must be {_describe(hint)}, not {value!r}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _accepts(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        return any(_accepts(value, arg) for arg in args)
    if origin is Literal:
        return value in args and isinstance(value, str)
    if origin is tuple:
        return isinstance(value, tuple) and all(isinstance(entry, args[0]) for entry in value)
    if origin is not None:
        return isinstance(value, Mapping)
    return type(value) is hint


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        return " or ".join("nothing" if arg is type(None) else _describe(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(args)
    if origin is tuple:
        return "a list of text"
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(hint, "a mapping")


def at_least(config: Any, least: int, *names: str) -> None:
    """Raise `ConfigError` for the first of the named fields that is below `least`; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise ConfigError(name, f"must be {least} or more, not {value}")
