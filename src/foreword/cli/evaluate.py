"""`foreword eval`: loss and text metrics on a file of examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from foreword.cli import common


def command(
    data: Annotated[str, typer.Option("--data", help="Rows to measure on: {input, target} or {input, references}.")],
    prefix: common.Prefix = None,
    model: common.Model = None,
    template: common.Template = None,
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", help="Some of the task's, with commas between them. Default: all."),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            "--head", help="A trained head (run/head, or run/head:name of several). Default: the prefix's own."
        ),
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="Without a head: what is asked, lm or verbalizer.")] = None,
    task_option: common.TaskOption = None,
    rows: common.Rows = None,
    max_new_tokens: common.MaxNewTokens = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Rows at once. Default: 16.")] = None,
    input_field: Annotated[
        str | None,
        typer.Option("--input-field", help="The input's field. Default: as the prefix was trained."),
    ] = None,
    target_field: Annotated[
        str | None,
        typer.Option("--target-field", help="The target's field. Default: as the prefix was trained."),
    ] = None,
    max_bad_rows: common.MaxBadRows = None,
    answers: Annotated[
        Path | None, typer.Option("--answers", help="Write the answers to this file, one a line.")
    ] = None,
    dtype: common.Dtype = None,
    device: common.Device = None,
    quantise: common.Quantise = None,
    lora: common.Lora = None,
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """Measure a model, with or without a prefix: loss in nats, perplexity, BLEU, chrF, ROUGE-L and exact match; of a
    trained head accuracy, F1 and the like.

    Example: foreword eval --data valid.jsonl --prefix runs/e2e/prefix --metrics loss,bleu
    """
    from foreword.config import TEXT_METRICS, EvalConfig
    from foreword.errors import ConfigError
    from foreword.format import read_manifest
    from foreword.settings import build

    flags = common.given(
        data=data, prefix=prefix, template=common.unescape(template), metrics=common.names(metrics or None), rows=rows,
        max_new_tokens=max_new_tokens, batch_size=batch_size, max_bad_rows=max_bad_rows, dtype=dtype, device=device, quantise=quantise, lora=lora,
    )  # fmt: skip
    flags |= common.given(input_field=input_field, target_field=target_field, head=head, task=task)
    if task_option:
        flags["task_options"] = common.pairs("--task-option", task_option)
    if prefix is not None:
        trained = read_manifest(Path(prefix))["record"].get("config", {})
        kept = ("input_field", "target_field", "task", "task_options")
        flags = {name: trained[name] for name in kept if name in trained} | flags
    config = build(EvalConfig, flags | {"model": common.model_for(model, prefix)}, "flags")
    if answers is not None and config.metrics is not None and set(config.metrics) <= {"loss", "perplexity"}:
        raise ConfigError("--answers", f"there are none without a text metric ({', '.join(TEXT_METRICS)})")
    if answers is not None and not answers.absolute().parent.is_dir():
        raise ConfigError("--answers", f"{answers.parent} is not a folder")
    base = common.load_base(config.model, config.dtype, config.device, config.quantise, config.lora)
    from foreword.evaluation import evaluate

    with common.bar(common.err(), quiet=json) as update:
        result = evaluate(base, config, progress=update)
    for bad in result.bad_rows:
        common.note(f"left out {bad}")
    if answers is not None:
        answers.write_text("".join(" ".join(text.split()) + "\n" for text in result.texts), encoding="utf-8")
    if json:
        common.print_json(
            {
                "metrics": result.metrics,
                "signatures": result.signatures,
                "rows": result.rows,
                "target_tokens": result.target_tokens,
                "bad_rows": [str(bad) for bad in result.bad_rows],
            }
        )
        return
    table = Table(title=f"{result.rows} rows, {result.target_tokens} target tokens")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in result.metrics.items():
        table.add_row(name, f"{value:.4f}" if name == "loss" else f"{value:.2f}")
    common.out().print(table)
    for name, signature in result.signatures.items():
        common.out().print(f"{name}: {signature}", soft_wrap=True)
