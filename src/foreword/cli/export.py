"""`foreword export`: write a prefix for another program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foreword.cli import common
from foreword.cli.prefixes import prefix_folder


def _formats() -> dict[str, str]:
    from foreword.export import summaries

    return summaries()


def command(
    prefix: common.SavedPrefix,
    output: Annotated[str, typer.Option("--output", help="A new folder for what is written.")],
    to: Annotated[str, typer.Option("--to", help="The format; --list shows those there are.")] = "transformers",
    model: Annotated[
        str | None,
        typer.Option("--model", help="The base. Default: that of the prefix."),
    ] = None,
    listed: Annotated[
        bool,
        typer.Option("--list", callback=common.listing(_formats), is_eager=True, help="List the formats."),
    ] = False,
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """Write a trained prefix in another format, and print how to run it.

    Example: foreword export runs/e2e --to transformers --output e2e-cache
    """
    from foreword.export import export_prefix
    from foreword.prefix import Prefix

    folder = prefix_folder(prefix)
    usage = export_prefix(Prefix.load(folder), to, output, _base(model, folder))
    if json:
        common.print_json({"prefix": prefix, "to": to, "output": output, "usage": usage})
    else:
        common.out().print(f"written  {output}", soft_wrap=True)
        if (Path(output) / "ask.py").exists():
            common.out().print(f"run it   python {output}/ask.py 'your input'", soft_wrap=True)
        common.out().print(f"\n{usage}", soft_wrap=True)


def _base(model: str | None, folder: str) -> str | None:
    """Return the base that is named, or that the prefix tells; None if it tells one that is not there."""
    from foreword.errors import ConfigError

    try:
        return common.model_for(model, folder)
    except ConfigError:
        if model is not None:
            raise
        return None
