"""Flags of the command line, made from the settings' own descriptions."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

import typer

from foreword.errors import ConfigError
from foreword.plain import parse_yaml, shown
from foreword.settings import About, describe

Command = Callable[..., None]
NAMES = "NAME=VALUE"  # the metavar of flags whose names are settings


def with_flags(
    kind: type[Any], *, without: Iterable[str] = (), recorded: Iterable[str] = ()
) -> Callable[[Command], Command]:
    """Give a command a flag for each setting of `kind`, in place of its `**flags`.

    without: settings that the command asks for itself. recorded: settings whose default is the prefix's record. A
    flag that isn't given is None; `values` makes settings of those that are.
    """
    left_out, from_record = set(without), set(recorded)

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        explicit = [item for item in signature.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
        made = [item for item in _parameters(kind, from_record) if item.name not in left_out]
        command.__signature__ = signature.replace(parameters=[*explicit[:1], *made, *explicit[1:]])  # type: ignore[attr-defined]
        command.__annotations__ = {}  # Typer reads the signature
        return command

    return decorate


def values(kind: type[Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given, as `settings.build` takes them. Raises `ConfigError` for one that can't be read."""
    about = describe(kind)
    return {name: _value(name, value, about[name]) for name, value in flags.items() if value is not None}


def pairs(flag: str, entries: Iterable[str], underscores: bool = True) -> dict[str, Any]:
    """NAME=VALUE entries, values read as YAML does: 3 is a number, true a truth value.

    underscores: a dash in a name is one, as in flags. Raises `ConfigError`, also for a name that is given twice.
    """
    read: dict[str, Any] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals or not name:
            raise ConfigError(flag, f"{shown(entry)} must be NAME=VALUE")
        name = name.replace("-", "_") if underscores else name
        if name in read:
            raise ConfigError(flag, f"{shown(name)} is given twice")
        read[name] = parse_yaml(value, f"{flag} {name}" if len(name) <= 60 else flag)
    return read


def unescape(text: str) -> str:
    r"""A template from the shell: `\n`, `\t` and `\\` mean new line, tab and backslash."""
    marked = text.replace("\\\\", "\0")
    return marked.replace("\\n", "\n").replace("\\t", "\t").replace("\0", "\\")


def _value(name: str, value: Any, about: About) -> Any:
    if about.metavar is not None:
        return pairs(flag_of(name, about), value, underscores=about.metavar == NAMES)
    if about.commas:
        return tuple(entry.strip() for entry in value.split(",") if entry.strip())
    if name == "template":
        return unescape(value)
    return tuple(value) if isinstance(value, list) else value


def flag_of(name: str, about: About) -> str:
    """The flag of a setting."""
    return about.flag or f"--{name.replace('_', '-')}"


def _parameters(kind: type[Any], recorded: set[str]) -> list[inspect.Parameter]:
    hints, about = typing.get_type_hints(kind), describe(kind)
    return [
        _parameter(item, hints[item.name], about[item.name], item.name in recorded)
        for item in dataclasses.fields(kind)
        if about[item.name].flag is not None
    ]


def _parameter(item: dataclasses.Field[Any], hint: Any, about: About, recorded: bool) -> inspect.Parameter:
    names = [flag_of(item.name, about)]
    shell_type: Any = _shell_type(hint, about)
    if shell_type is bool:
        names = [f"{names[0]}/--no-{names[0][2:]}"]
    option = typer.Option(*names, help=_help(item, hint, about, recorded), metavar=about.metavar, show_default=False)
    annotation: Any = Annotated[shell_type | None, option]
    return inspect.Parameter(item.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation)


def _shell_type(hint: Any, about: About) -> Any:
    """The type of what is typed in the shell."""
    plain = next(part for part in _alternatives(hint) if part is not type(None))
    origin = typing.get_origin(plain)
    if about.metavar is not None or (origin is tuple and not about.commas):
        return list[str]
    if about.commas or about.share or origin is Literal:
        return str
    return plain


def _alternatives(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if union else (hint,)


def _help(item: dataclasses.Field[Any], hint: Any, about: About, recorded: bool) -> str:
    choices = [
        arg for part in _alternatives(hint) if typing.get_origin(part) is Literal for arg in typing.get_args(part)
    ]
    listed = f" One of {', '.join(choices)}." if choices and not all(choice in about.help for choice in choices) else ""
    default = " Default: as the prefix was trained." if recorded else default_text(item)
    return about.help.split(" Without it:")[0] + listed + default if recorded else about.help + listed + default


def default_text(item: dataclasses.Field[Any]) -> str:
    """The default in words; empty where there is none to tell."""
    value = item.default
    if value is dataclasses.MISSING or value is None or value in ("", ()):
        return ""
    shown = (
        ",".join(value) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else f"{value}"
    )
    return f" Default: {shown}."
