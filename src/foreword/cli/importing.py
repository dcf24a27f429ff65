"""`foreword import`: make a prefix of what another program has saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from foreword.cli import common
from foreword.cli.prefixes import how_to_use
from foreword.errors import ConfigError


def _formats() -> dict[str, str]:
    from foreword.export.importing import IMPORTERS

    return {name: kind.summary for name, kind in IMPORTERS.items()}


def command(
    folder: Annotated[str, typer.Argument(help="The folder that the other program has saved.")],
    source: Annotated[
        str | None,
        typer.Option("--from", help="Its format; --list shows those there are."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The base. Default: that of the files.")] = None,
    output: Annotated[str | None, typer.Option("--output", help="A new folder for the prefix.")] = None,
    store: Annotated[
        str | None, typer.Option("--store", metavar="TEAM/TASK", help="Put it into the store under this name.")
    ] = None,
    dtype: common.Dtype = None,
    device: common.Device = None,
    listed: Annotated[
        bool,
        typer.Option("--list", callback=common.listing(_formats), is_eager=True, help="List the formats."),
    ] = False,
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """Make a prefix of what another program has saved, for instance PEFT.

    Example: foreword import peft-adapter --output prefixes/mine

    Example: foreword import peft-adapter --store sales/descriptions
    """
    _require_target(output, store)
    common.begin()
    from foreword.export.importing import import_prefix, importer_of

    named = model or importer_of(folder, source).base_name(Path(folder))
    base = common.load_base(common.model_for(named, None), dtype, device)
    prefix = import_prefix(folder, base, source)
    told: dict[str, Any] = {"length": prefix.length, "method": prefix.method, "digest": prefix.digest}
    if output is not None:
        prefix.save(output)
        told["output"] = output
    if store is not None:
        from foreword.store import Store

        told["store"] = f"{store}@{Store().add(prefix, store).digest[:12]}"
    if json:
        common.print_json(told)
        return
    where = output or str(store)
    common.out().print(f"imported  {where}  ({prefix.length} virtual tokens, by {prefix.method})", soft_wrap=True)
    common.out().print(f"use it    {how_to_use(where, prefix.record)}", soft_wrap=True)


def _require_target(output: str | None, store: str | None) -> None:
    """Raise `ConfigError` before the base is loaded if the prefix could not be kept."""
    if output is None and store is None:
        raise ConfigError("--output", "say where the prefix goes: --output FOLDER or --store team/task")
    if output is not None and Path(output).exists():
        raise ConfigError("--output", f"{output} exists; name a new folder")
    if store is not None:
        from foreword.versions.names import check_name

        check_name(store)
