"""`foreword eval`: loss and text metrics on a file of examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import common, live, tables
from foreword.cli.flags import values, with_flags
from foreword.cli.prefixes import prefix_folder
from foreword.config import EvalConfig
from foreword.settings import of_each_task

if TYPE_CHECKING:
    from foreword.evaluation import EvalResult


@with_flags(EvalConfig, without=("data", "model", "prefix"), recorded=of_each_task(EvalConfig))
def command(
    data: Annotated[str, typer.Option("--data", help="Rows to measure on: {input, target} or {input, references}.")],
    prefix: common.Prefix = None,
    model: common.Model = None,
    answers: Annotated[
        Path | None, typer.Option("--answers", help="Write the answers to this file, one a line.")
    ] = None,
    json: common.Json = False,
    debug: common.Debug = False,
    **flags: Any,
) -> None:
    """Measure a model, with or without a prefix: loss in nats, perplexity, BLEU, chrF, ROUGE-L and exact match; of a
    trained head accuracy, F1 and the like.

    Example: foreword eval --data valid.jsonl --prefix runs/e2e --metrics loss,bleu
    """
    config = _config(data, None if prefix is None else prefix_folder(prefix), model, flags)
    if answers is not None:
        _require_answers(answers, config)
    from foreword.evaluation import evaluate, require_metrics
    from foreword.files import writing

    require_metrics(config.metrics or ())
    base = common.load_base(config.model, config.dtype, config.device, config.quantise, config.lora)
    result = evaluate(base, config)
    for line in live.left_out(result.bad_rows):
        common.note(line)
    if answers is not None:
        with writing(answers):
            answers.write_text("".join(common.one_line(text) + "\n" for text in result.texts), encoding="utf-8")
    _report(result, json)


def _config(data: str, prefix: str | None, model: str | None, flags: dict[str, Any]) -> EvalConfig:
    """Settings of the prefix's training, then the flags'."""
    common.begin()
    from foreword.prefix.records import recorded_config
    from foreword.prefix.stored import read_manifest
    from foreword.settings import build

    given = {"data": data} | values(EvalConfig, flags | {"prefix": prefix, "metrics": flags.get("metrics") or None})
    if prefix is not None:
        trained = recorded_config(read_manifest(Path(prefix))["record"])
        of_task = of_each_task(EvalConfig) - {"data", "template"}  # the record keeps the template that was used
        given = {name: trained[name] for name in of_task if name in trained} | given
    return build(EvalConfig, given | {"model": common.model_for(model, prefix)}, "flags")


def _require_answers(answers: Path, config: EvalConfig) -> None:
    """Raise `ConfigError` if there will be no answers, or no folder for them."""
    from foreword.config import TEXT_METRICS
    from foreword.errors import ConfigError

    if config.metrics is not None and set(config.metrics) <= {"loss", "perplexity"}:
        raise ConfigError("--answers", f"there are none without a text metric ({', '.join(TEXT_METRICS)})")
    if not answers.absolute().parent.is_dir():
        raise ConfigError("--answers", f"{answers.parent} is not a folder")
    if answers.is_dir():
        raise ConfigError("--answers", f"{answers} is a folder; name a file")


def _report(result: EvalResult, as_json: bool) -> None:
    if as_json:
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
    table = common.table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in result.metrics.items():
        table.add_row(name, f"{value:.4f}" if name == "loss" else f"{value:.2f}")
    common.out().print(f"{result.rows:,} rows, {result.target_tokens:,} target tokens")
    tables.print_table(table)
    for name, signature in result.signatures.items():
        common.out().print(f"{name}: {signature}", soft_wrap=True)
