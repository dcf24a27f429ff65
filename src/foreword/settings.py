"""Settings: one description of each, from which checks, flags, docs and resumption rules are made.

A settings class is a frozen dataclass whose fields are made by `setting`. Its `__post_init__` calls `check`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from foreword import plain
from foreword.errors import ConfigError
from foreword.plain import shown

Config = TypeVar("Config")
_ABOUT = "about"


@dataclass(frozen=True)
class About:
    """What is known of a setting beside its type and default.

    help: a sentence. group: where docs and help list it. least, most: the smallest and the largest value. above: the
    value must be larger. below: the value must be smaller. free_on_resume: it may differ when a run goes on, since it
    doesn't change what is computed. worked_out: left open, a run works it out; a resumption that leaves it open takes
    it from the run. of_data: it says which rows there are and how they are read. per_task: each task of a mixture may
    have its own. flag: of the command line, "" for the name itself, None for none. metavar: what the flag takes.
    commas: one flag with commas instead of a repeated one. share: `1%` is 0.01.
    """

    help: str
    group: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    free_on_resume: bool = False
    worked_out: bool = False
    of_data: bool = False
    per_task: bool = False
    flag: str | None = ""
    metavar: str | None = None
    commas: bool = False
    share: bool = False


def setting(
    default: Any = None, *, factory: Callable[[], Any] | None = None, help: str, group: str, **about: Any
) -> Any:
    """A field with its description. factory: makes the default where that is mutable. about: see `About`."""
    metadata = {_ABOUT: About(help, group, **about)}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def describe(kind: type[Any]) -> dict[str, About]:
    """The description of each setting of a class, in order."""
    return {item.name: item.metadata[_ABOUT] for item in dataclasses.fields(kind)}


def defaults(kind: type[Any]) -> dict[str, Any]:
    """The default of each setting of a class."""
    return {
        item.name: item.default_factory() if callable(item.default_factory) else item.default
        for item in dataclasses.fields(kind)
    }


def free_on_resume(kind: type[Any]) -> set[str]:
    """The settings that may differ between a run and its resumption."""
    return {name for name, about in describe(kind).items() if about.free_on_resume}


def worked_out(kind: type[Any]) -> set[str]:
    """The settings that a run works out where they are left open."""
    return {name for name, about in describe(kind).items() if about.worked_out}


def about_data(kind: type[Any]) -> set[str]:
    """The settings that say which rows there are and how they are read."""
    return {name for name, about in describe(kind).items() if about.of_data}


def of_each_task(kind: type[Any]) -> set[str]:
    """The settings that each task of a mixture may have for itself."""
    return {name for name, about in describe(kind).items() if about.per_task}


def read_settings(path: str | Path) -> dict[str, Any]:
    """The mapping in a .toml, .yaml, .yml or .json file, of plain values (`foreword.plain`).

    Raises `ConfigError` naming file and line.
    """
    value = plain.read(Path(path))
    if not isinstance(value, dict):
        raise ConfigError(str(path), "must hold a mapping of settings")
    return value


def build(kind: type[Config], values: Mapping[str, Any], origin: str = "settings") -> Config:
    """Make a config from plain values. Unknown names raise `ConfigError` with the nearest known one."""
    known = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name)[:60], known, 1) if isinstance(name, str) else []
            hint = f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(known)})"
            text = name if isinstance(name, str) and name.isidentifier() and len(name) <= 60 else shown(name)
            raise ConfigError(f"{origin}: {text}", f"is not a setting{hint}")
    return kind(**values)


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values; `build` takes them back."""
    return {item.name: _plain(getattr(config, item.name)) for item in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple | list) else value


def check(config: Any) -> None:
    """Raise `ConfigError` for the first setting that is not of its declared type or not within its range."""
    check_types(config)
    for name, about in describe(type(config)).items():
        value = getattr(config, name)
        if value is not None:
            _check_range(name, value, about)


def _check_range(name: str, value: Any, about: About) -> None:
    if about.least is not None and value < about.least:
        raise ConfigError(name, f"must be {about.least:g} or more, not {shown(value)}")
    if about.most is not None and value > about.most:
        least = "" if about.least is None else f"{about.least:g} to "
        raise ConfigError(name, f"must be {least}{int(about.most):,}{'' if least else ' or less'}, not {shown(value)}")
    if about.above is not None and not value > about.above:
        raise ConfigError(name, f"must be above {about.above:g}, not {shown(value)}")
    if about.below is not None and not value < about.below:
        raise ConfigError(name, f"must be below {about.below:g}, not {shown(value)}")


def check_types(config: Any) -> None:
    """Raise `ConfigError` for the first field whose value is not of its declared type, or not plain.

    Whole numbers become floats where a float is declared. Numbers must be finite, and whole ones fit 64 bits.
    """
    hints = typing.get_type_hints(type(config))
    for item in dataclasses.fields(config):
        hint, about = hints[item.name], item.metadata.get(_ABOUT)
        given = getattr(config, item.name)
        value = _converted(given, hint, about)
        if not accepts(value, hint):
            expected = "a share such as 1% or 0.01" if about is not None and about.share else describe_type(hint)
            raise ConfigError(item.name, f"must be {expected}, not {shown(value)}")
        if isinstance(value, float) and not math.isfinite(value):
            bound = (
                "" if about is None else " above 0" if about.above == 0 else " of 0 or more" if about.least == 0 else ""
            )
            raise ConfigError(item.name, f"must be a finite number{bound}, not {value}")
        if about is None or about.most is None or not isinstance(value, int):
            plain.check_plain(value, item.name)
        if value is not given:
            object.__setattr__(config, item.name, value)


def _converted(value: Any, hint: Any, about: About | None) -> Any:
    """Return `value` in its declared type if it can be written in another one; else `value`."""
    wants_float = accepts(1.0, hint) and not accepts("", hint)
    if isinstance(value, str) and wants_float and accepts(1, hint) and value.strip().isdecimal() and len(value) < 20:
        return int(value)
    if type(value) is int and wants_float and not accepts(1, hint):
        return float(value) if abs(value) < 10**300 else math.inf
    if isinstance(value, Path) and accepts("", hint):
        return str(value)
    if isinstance(value, list) and not accepts(value, hint) and accepts(tuple(value), hint):
        return tuple(value)
    if isinstance(value, str) and wants_float and (number := _number(value, about)) is not None:
        return number  # YAML reads 6e-2 as text
    return value


def _number(text: str, about: About | None) -> float | None:
    """The number in `text`; of a share `1%` is one. None: there is none."""
    percent = about is not None and about.share and text.endswith("%")
    try:
        return float(text[:-1]) / 100 if percent else float(text)
    except ValueError:
        return None


def accepts(value: Any, hint: Any) -> bool:
    """Whether a value is of a declared type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        return any(accepts(value, arg) for arg in args)
    if origin is Literal:
        return value in args and isinstance(value, str)
    if origin is tuple:
        return isinstance(value, tuple) and all(isinstance(entry, args[0]) for entry in value)
    if origin is not None:
        return isinstance(value, Mapping)
    return type(value) is hint


def describe_type(hint: Any) -> str:
    """A declared type in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        return " or ".join("nothing" if arg is type(None) else describe_type(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(args)
    if origin is tuple:
        return "a list of text"
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(hint, "a mapping")
