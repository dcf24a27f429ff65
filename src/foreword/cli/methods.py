"""`foreword methods`: the parameterisations, and what each costs for a model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from foreword.cli import common, tables

COLUMNS = {
    "method": "method",
    "parameters": "parameters",
    "share": "of model",
    "saving": "saves",
    "learning_rate": "lr",
    "is_cache": "KV cache",
}


def command(
    model: Annotated[
        str | None, typer.Argument(help="Hub id, folder, .gguf file, bundled name, or just a config.json to count for.")
    ] = None,
    config: Annotated[str | None, typer.Option("--config", help="A config.json, instead of a model.")] = None,
    length: Annotated[int, typer.Option("--length", min=1, help="Virtual tokens to count for.")] = 32,
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """List the methods: what each learns, how many parameters for a model and length, and what it can be exported as.

    Nothing is downloaded for a config file, and no weights are made. Example: foreword methods --config
    gpt2-medium.json --length 100
    """
    from foreword.config import DEFAULT_MODEL
    from foreword.errors import ConfigError

    if model is not None and config is not None:
        raise ConfigError("--config", "give a model or a config file, not both")
    name = config or model or DEFAULT_MODEL
    rows, whole = _rows(name, length)
    if json:
        common.print_json({"model": name, "model_parameters": whole, "length": length, "methods": rows})
        return
    table = common.table()
    for column, title in COLUMNS.items():
        table.add_column(title, no_wrap=True, justify="left" if column in ("method", "is_cache") else "right")
    words = []
    for row in rows:
        table.add_row(*(_shown(column, row[column]) for column in COLUMNS))
        export = "" if row["is_cache"] else f" (exports as: {row['exports_as']})"
        words.append((row["method"], row["learns"] + export))
    tables.print_text(f"{name}, {whole:,} parameters; {length} virtual tokens")
    tables.print_table(table)
    tables.print_facts(words, indent=1)


def _rows(name: str, length: int) -> tuple[list[dict[str, Any]], int]:
    """(a row per method, parameters of the model)."""
    from foreword.base.loading import empty_model, load_config
    from foreword.methods import METHODS
    from foreword.models.slots import embedding_width, find_slots
    from foreword.proof import require_proof

    model = empty_model(load_config(name))
    require_proof(model)
    slots, width = find_slots(model).slots, embedding_width(model)
    whole = sum(parameter.numel() for parameter in model.parameters())
    direct = METHODS["direct"].count(slots, length, width, None)
    rows = []
    for key, method in METHODS.items():
        count = method.count(slots, length, width, method.parse_options({}))
        kind = method.kind(model)
        rows.append(
            {
                "method": key,
                "learns": method.summary,
                "formula": method.formula,
                "parameters": count,
                "share": count / whole,
                "saving": 1 - count / direct,
                "learning_rate": method.default_lr,
                "merge": kind.name,
                "is_cache": kind.is_cache,
                "exports_as": kind.export,
            }
        )
    return rows, whole


def _shown(column: str, value: Any) -> str:
    if column == "parameters":
        return f"{value:,}"
    if column == "share":
        return f"{100 * value:.3g} %"
    if column == "saving":
        return f"{100 * value:.0f} %" if value > 0 else "–"
    if column == "is_cache":
        return "yes" if value else "no"
    return f"{value:g}" if column == "learning_rate" else str(value)
