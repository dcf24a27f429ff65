"""Help that breaks lines between words only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_JOINED = "\u2011"  # a hyphen at which no line breaks; it becomes a plain one again, since help is pasted
_Formatter: Any = typer.Context.formatter_class  # Click's own; Typer may carry a copy of Click


class _Whole(_Formatter):  # type: ignore[misc]
    """Click's formatter breaks `token-cls` behind its hyphen."""

    def write_text(self, text: str) -> None:
        super().write_text(text.replace("-", _JOINED))

    def write_dl(self, rows: Sequence[tuple[str, str]], *args: Any, **kwargs: Any) -> None:
        super().write_dl([(name, text.replace("-", _JOINED)) for name, text in rows], *args, **kwargs)

    def getvalue(self) -> str:
        return str(super().getvalue()).replace(_JOINED, "-")


class _Context(typer.Context):
    formatter_class = _Whole


class Verb(TyperCommand):
    """A command whose help keeps words whole. For `app.command(…, cls=Verb)`."""

    context_class = _Context


class Group(TyperGroup):
    """A group of commands with such help, in their own order."""

    context_class = _Context

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)


class Verbs(Group):
    """A group whose first command is meant where none is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)
