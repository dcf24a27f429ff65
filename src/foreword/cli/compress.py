"""`foreword compress`: make a trained prefix smaller, and measure what each way costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from foreword.cli import common

if TYPE_CHECKING:
    from foreword.compression import CompressResult, Measured


def command(
    prefix: common.SavedPrefix,
    choices: Annotated[
        str | None,
        typer.Option(
            "--choices",
            help="Some of svd-R, int8, drop-to-1/N, merge-to-1/N, drop-to-1/N+int8, …, with commas. "
            "Default: a dozen of them.",
        ),
    ] = None,
    recover: Annotated[
        int | None, typer.Option("--recover", help="Steps of recovery training for each choice. Default: 0, none.")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Recovery's peak learning rate. Default: 0.03.")] = None,
    keep_loss: Annotated[
        str | None,
        typer.Option("--keep-loss", help="Pick the smallest whose validation loss is at most this much higher: 1%."),
    ] = None,
    max_kb: Annotated[
        float | None, typer.Option("--max-kb", help="Pick the lowest validation loss of at most so many KB.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", help="Folder for what is picked. Default: PREFIX with -compressed behind its name."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Training rows, for attention mass and recovery. Default: the prefix's own."),
    ] = None,
    validation: Annotated[
        str | None, typer.Option("--validation", help="Rows to measure on. Default: those of the prefix's training.")
    ] = None,
    rows: common.Rows = None,
    model: common.Model = None,
    template: common.Template = None,
    no_bleu: Annotated[bool, typer.Option("--no-bleu", help="Measure the loss alone: no generation.")] = False,
    max_new_tokens: common.MaxNewTokens = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Rows at once. Default: as the prefix was trained.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Order of rows. Default: as the prefix was trained.")
    ] = None,
    dtype: common.Dtype = None,
    device: common.Device = None,
    quantise: common.Quantise = None,
    lora: common.Lora = None,
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """Measure ways to make a trained prefix smaller: bytes against validation loss and BLEU. With --keep-loss or --max-kb one is picked and written.

    Example: foreword compress runs/e2e/prefix --keep-loss 1% --output prefixes/e2e-small
    """
    from foreword.compression.data import recorded_settings
    from foreword.config import CompressConfig
    from foreword.format import read_manifest
    from foreword.settings import build

    flags = common.given(
        choices=common.names(choices), recover=recover, lr=lr, keep_loss=_share(keep_loss), max_kb=max_kb, output=output,
        data=data, validation=validation, validation_rows=rows, template=common.unescape(template),
        max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed, dtype=dtype, device=device, quantise=quantise,
        lora=lora,
    )  # fmt: skip
    recorded = recorded_settings(read_manifest(Path(prefix))["record"])
    flags = recorded | flags | {"prefix": prefix, "bleu": not no_bleu, "model": common.model_for(model, prefix)}
    config = build(CompressConfig, flags, "flags")
    from foreword.compression import CompressResult
    from foreword.compression.run import check, keep, sweep
    from foreword.errors import CompressionError

    check(config)
    base = common.load_base(config.model, config.dtype, config.device, config.quantise, config.lora)
    with common.bar(common.err(), quiet=json) as update:
        measured = sweep(base, config, progress=update)
    for row in measured:
        if row.note is not None:
            common.note(f"{row.choice}: kept as it was before recovery; {row.note}")
    try:
        result = keep(measured, config)
    except CompressionError:  # what was measured is worth seeing all the same
        _report(CompressResult(measured), json)
        raise
    _report(result, json)


def _share(text: str | None) -> float | None:
    """`1%` and `0.01` are both a hundredth. Raises `ConfigError`."""
    from foreword.errors import ConfigError

    if text is None:
        return None
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError as error:
        raise ConfigError("--keep-loss", f"{text!r} must be a share such as 1% or 0.01") from error


def _report(result: CompressResult, as_json: bool) -> None:
    picked = None if result.picked is None else result.picked.choice
    where = None if result.output is None else str(result.output)
    if as_json:
        rows = [_row(row, result.rows[0]) for row in result.rows]
        common.print_json({"choices": rows, "picked": picked, "output": where})
        return
    common.out().print(_table(result.rows, picked))
    if result.picked is not None:
        console = common.out()
        console.print(
            f"picked   {picked}, saved in {where}  ({result.picked.num_bytes / 1000:,.0f} KB)", soft_wrap=True
        )
        console.print(f"use it   foreword generate --prefix {where} 'your input'", soft_wrap=True)


def _row(row: Measured, whole: Measured) -> dict[str, Any]:
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


def _table(rows: Sequence[Measured], picked: str | None) -> Table:
    whole, recovered = rows[0], any(row.recovered for row in rows)
    table = Table()
    names = ["choice", "tokens", "KB", "of the bytes", "validation loss ↓", "change", "BLEU ↑"]
    for name in [*names, *(["recovery steps"] if recovered else [])]:
        table.add_column(name, justify="left" if name == "choice" else "right")
    for row in rows:
        table.add_row(
            row.choice + (" (picked)" if row.choice == picked else ""),
            str(row.tokens),
            f"{row.num_bytes / 1000:,.1f}",
            f"{row.num_bytes / whole.num_bytes:.0%}",
            f"{row.loss:.4f}",
            f"{row.loss / whole.loss - 1:+.2%}",
            "" if row.bleu is None else f"{row.bleu:.1f}",
            *([str(row.recovered)] if recovered else []),
        )
    return table
