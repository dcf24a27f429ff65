"""`foreword compress`: make a trained prefix smaller, and measure what each way costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from foreword.cli import common, tables
from foreword.cli.flags import values, with_flags
from foreword.cli.prefixes import prefix_folder
from foreword.config import CompressConfig
from foreword.errors import ConfigError
from foreword.settings import about_data

if TYPE_CHECKING:
    from foreword.compression import CompressResult, MeasuredChoice


@with_flags(CompressConfig, without=("model", "task", "task_options"), recorded=about_data(CompressConfig))
def command(
    prefix: common.SavedPrefix,
    model: common.Model = None,
    json: common.Json = False,
    debug: common.Debug = False,
    **flags: Any,
) -> None:
    """Measure ways to make a trained prefix smaller: bytes against validation loss and BLEU. With --keep-loss or
    --max-kb one is picked and written.

    Example: foreword compress runs/e2e --keep-loss 1% --output prefixes/e2e-small
    """
    common.begin()
    from foreword.compression.data import recorded_settings
    from foreword.prefix.stored import read_manifest
    from foreword.settings import build

    prefix, given = prefix_folder(prefix), values(CompressConfig, flags)
    recorded = recorded_settings(read_manifest(Path(prefix))["record"], prefix)
    given = recorded | given | {"prefix": prefix, "model": common.model_for(model, prefix)}
    config = build(CompressConfig, given, "flags")
    from foreword.compression import CompressResult
    from foreword.compression.run import check, keep, sweep
    from foreword.errors import CompressionError

    check(config)
    base = common.load_base(config.model, config.dtype, config.device, config.quantise, config.lora)
    measured = sweep(base, config)
    for row in measured:
        if row.note is not None:
            common.note(f"{row.choice}: kept as it was before recovery; {row.note}")
    try:
        result = keep(measured, config)
    except CompressionError:  # what was measured is worth seeing all the same
        _report(CompressResult(measured), json, config.model)
        raise
    _report(result, json, config.model)


def _report(result: CompressResult, as_json: bool, model: str) -> None:
    picked = None if result.picked is None else result.picked.choice
    where = None if result.output is None else str(result.output)
    if as_json:
        rows = [_row(row, result.rows[0]) for row in result.rows]
        common.print_json({"choices": rows, "picked": picked, "output": where})
        return
    tables.print_table(_table(result.rows, picked))
    if result.picked is not None:
        console = common.out()
        console.print(
            f"picked   {picked}, saved in {where}  ({result.picked.num_bytes / 1000:,.0f} KB)", soft_wrap=True
        )
        console.print(
            f"use it   foreword generate --prefix {where}{_model_flag(where, model)} 'your input'", soft_wrap=True
        )


def _model_flag(where: str | None, model: str) -> str:
    """The flag that names the base, where a prefix can't tell: away from its run, of a local base."""
    try:
        common.model_for(None, where)
    except ConfigError:
        return f" --model {model}"
    return ""


def _row(row: MeasuredChoice, whole: MeasuredChoice) -> dict[str, Any]:
    return {
        "choice": row.choice,
        "virtual_tokens": row.tokens,
        "bytes": row.num_bytes,
        "share": row.num_bytes / whole.num_bytes,
        "validation_loss": row.loss,
        "loss_change": row.loss / whole.loss - 1,
        "bleu": row.bleu,
        "recovery_steps": row.recovered,
        "note": row.note,
    }


def _table(rows: Sequence[MeasuredChoice], picked: str | None) -> Table:
    whole, table = rows[0], common.table()
    answered, recovered = any(row.bleu is not None for row in rows), any(row.recovered for row in rows)
    names = ["choice", "tokens", "KB", "share", "loss ↓", "change"]
    for name in (*names, *(["BLEU ↑"] * answered), *(["recovered"] * recovered)):
        table.add_column(name, justify="left" if name == "choice" else "right")
    for row in rows:
        bleu = "" if row.bleu is None else f"{row.bleu:.1f}"
        table.add_row(
            row.choice + (" (picked)" if row.choice == picked else ""),
            str(row.tokens),
            f"{row.num_bytes / 1000:,.1f}",
            f"{row.num_bytes / whole.num_bytes:.0%}",
            f"{row.loss:.4f}",
            f"{row.loss / whole.loss - 1:+.2%}",
            *([bleu] * answered),
            *([str(row.recovered)] * recovered),
        )
    return table
