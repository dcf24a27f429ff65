"""`foreword train`: train a prefix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import common

if TYPE_CHECKING:
    from foreword.config import TrainConfig
    from foreword.training import TrainResult


def command(
    run: Annotated[
        str | None, typer.Argument(help="Settings in a .yaml, .toml or .json file; flags win over it.")
    ] = None,
    model: common.Model = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Training rows: JSONL, CSV, TSV, Parquet, a Datasets folder or id (org/name:split).",
        ),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option("--validation", help="Held-out rows. Default: up to 96 rows, at most a tenth, of the data."),
    ] = None,
    template: common.Template = None,
    method: Annotated[
        str | None, typer.Option("--method", help="One of those that foreword methods lists. Default: direct.")
    ] = None,
    length: Annotated[int | None, typer.Option("--length", help="Virtual tokens. Default: 32.")] = None,
    init: Annotated[
        str | None, typer.Option("--init", help="text, vocab, labels, mean, random or prefix. Default: text.")
    ] = None,
    init_text: Annotated[
        str | None,
        typer.Option(
            "--init-text",
            help="Text whose keys and values start the prefix. Default: the first training rows.",
        ),
    ] = None,
    init_prefix: Annotated[
        str | None,
        typer.Option("--init-prefix", help="With --init prefix: the folder of the prefix to go on from."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", help="Optimizer steps. Default: as many as --epochs over the data."),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="Passes over the data, without --steps. Default: 3.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Rows per optimizer step. Default: 16.")
    ] = None,
    accumulation: Annotated[
        int | None,
        typer.Option("--accumulation", help="Parts each batch is computed in, to save memory. Default: 1."),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option("--lr", help="Peak learning rate. Default: the method's own (direct 0.06)."),
    ] = None,
    max_bad_rows: common.MaxBadRows = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="lm, seq-cls, token-cls, multiple-choice, qa or verbalizer. Default: lm."),
    ] = None,
    slots: Annotated[
        list[str] | None,
        typer.Option(
            "--slots", help="Which attention layers take a prefix: decoder.0-5, cross, encoder.3; may be repeated."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of row order and random initialisation. Default: 0.")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", help="Run folder. Default: a new one in runs/.")] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", help="Run folder or checkpoint to go on from, with its settings."),
    ] = None,
    what: Annotated[
        str | None,
        typer.Option(
            "--train", help="What learns where the base carries a LoRA: prefix, lora or both. Default: prefix."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other setting of TrainConfig, for instance --set patience=3.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="NAME=VALUE",
            help="A setting of the method, for instance --option hidden=256.",
        ),
    ] = None,
    task_option: common.TaskOption = None,
    dtype: common.Dtype = None,
    device: common.Device = None,
    quantise: common.Quantise = None,
    lora: common.Lora = None,
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """Train a prefix on a frozen model.

    Example: foreword train --data train.jsonl --validation valid.jsonl --template '{input}\\nDescription:'

    Rows are {"input": …, "target": …}; of other tasks {"text", "label"}, {"tokens", "tags"} and so on (docs/tasks.md).
    Each bad row is reported with file and line, and stops the run.
    The run folder holds config.json, history.jsonl, loss.png, prefix/ (the best), checkpoints/, and a task's head/.
    """
    flags = common.given(
        model=model, data=data, validation=validation, template=common.unescape(template), method=method,
        length=length, init=init, init_text=init_text, init_prefix=init_prefix, steps=steps, epochs=epochs,
        batch_size=batch_size, accumulation=accumulation, lr=lr, seed=seed, max_bad_rows=max_bad_rows, output=output, resume=resume,
        dtype=dtype, device=device, quantise=quantise, lora=lora, train=what, task=task,
        slots=tuple(slots) if slots else None,
    )  # fmt: skip
    flags = common.pairs("--set", settings) | flags
    if option:
        flags["options"] = common.pairs("--option", option)
    if task_option:
        flags["task_options"] = common.pairs("--task-option", task_option)
    config = _config(run, flags)
    base = common.load_base(config.model, config.dtype, config.device, config.quantise, config.lora)

    from foreword.cli.progress import TrainingProgress
    from foreword.training import train
    from foreword.training.processes import leave_processes

    with TrainingProgress(common.err(), quiet=json) as observer:
        result = train(base, config, observer)
    if leave_processes():
        _report(result, json)


def _config(run: str | None, flags: dict[str, Any]) -> TrainConfig:
    """Settings of the resumed run, then the file's, then the flags'."""
    from foreword.config import TrainConfig
    from foreword.settings import build, read_settings
    from foreword.training.checkpoint import find_checkpoint, read_state

    values = {} if run is None else read_settings(run)
    resume = flags.get("resume") or values.get("resume")
    saved = read_state(find_checkpoint(Path(resume)))[1] if resume else {}
    return build(TrainConfig, saved | values | flags, run or "flags")


def _report(result: TrainResult, as_json: bool) -> None:
    folder = result.run / "prefix"
    if as_json:
        common.print_json(
            {
                "run": str(result.run),
                "prefix": str(folder),
                "steps": result.steps,
                "validation_loss": result.validation_loss,
                "stopped_early": result.stopped_early,
                "parameters": result.prefix.num_parameters,
                "kilobytes": common.kilobytes(folder),
            }
        )
        return
    first = next(row["validation_loss"] for row in result.history if "validation_loss" in row)
    console = common.out()
    why = ", stopped early" if result.stopped_early else ""
    console.print(f"validation loss {first:.4f} → {result.validation_loss:.4f} after {result.steps} steps{why}")
    console.print(f"prefix   {folder}  ({common.kilobytes(folder):,.0f} KB, {result.prefix.length} virtual tokens)")
    if (result.run / "head").is_dir():
        console.print(f"head     {result.run / 'head'}")
    if (result.run / "lora").is_dir():
        console.print(f"LoRA     {result.run / 'lora'}")
    console.print(f"curves   {result.run / 'loss.png'}")
    generative = not (result.run / "head").is_dir()
    use = f"generate --prefix {folder} 'your input'" if generative else f"eval --prefix {folder} --data FILE"
    console.print(f"use it   foreword {use}", soft_wrap=True)
