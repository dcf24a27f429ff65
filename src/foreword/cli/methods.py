"""`foreword methods`: the parameterisations, and what each costs for a model."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from foreword.cli import common


def command(
    model: Annotated[
        str | None, typer.Argument(help="Hub id, folder, .gguf file, bundled name, or just a config.json to count for.")
    ] = None,
    length: Annotated[int, typer.Option("--length", min=1, help="Virtual tokens to count for.")] = 32,
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """List the methods: what each learns, how many parameters for a model and length, and what it is stored as.

    Example: foreword methods gpt2-medium/config.json --length 100
    """
    from foreword.config import DEFAULT_MODEL
    from foreword.methods import METHODS
    from foreword.models.loading import empty_model, load_config
    from foreword.models.slots import find_slots

    config = load_config(model or DEFAULT_MODEL)
    slots, hidden = find_slots(empty_model(config)).slots, config.get_text_config().hidden_size
    rows: list[dict[str, Any]] = [
        {
            "method": name,
            "learns": method.summary,
            "formula": method.formula,
            "parameters": method.count(slots, length, hidden, method.parse_options({})),
            "learning_rate": method.default_lr,
            "stored_as": "key/value cache",
        }
        for name, method in METHODS.items()
    ]
    if json:
        common.print_json({"model": model or DEFAULT_MODEL, "length": length, "methods": rows})
        return
    table = Table(title=f"{model or DEFAULT_MODEL}, {length} virtual tokens")
    for column in ("method", "learns", "parameters", "default lr", "stored as"):
        table.add_column(column, overflow="fold", justify="right" if column in ("parameters", "default lr") else "left")
    for row in rows:
        table.add_row(
            row["method"], row["learns"], f"{row['parameters']:,}", f"{row['learning_rate']:g}", row["stored_as"]
        )
    common.out().print(table)
