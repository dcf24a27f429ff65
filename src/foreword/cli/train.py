"""`foreword train`: train a prefix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import common, live
from foreword.cli.flags import pairs, values, with_flags
from foreword.cli.prefixes import how_to_use
from foreword.config import TrainConfig
from foreword.extras import installed

if TYPE_CHECKING:
    from foreword.training import TrainResult


@with_flags(TrainConfig)
def command(
    run: Annotated[
        str | None, typer.Argument(help="Settings in a .yaml, .toml or .json file; flags win over it.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting by its name, for instance --set patience=3."),
    ] = None,
    events: Annotated[
        Path | None, typer.Option("--events", help="Append what happens to this file, one JSON object a line.")
    ] = None,
    json: common.Json = False,
    debug: common.Debug = False,
    **flags: Any,
) -> None:
    """Train a prefix on a frozen model.

    Example: foreword train --data train.jsonl --validation valid.jsonl --template '{input}\\nDescription:'

    Rows are {"input": …, "target": …}; of other tasks {"text", "label"}, {"tokens", "tags"} and so on (docs/tasks.md).
    Each bad row is reported with file and line, and stops the run.
    The run folder holds config.json, history.jsonl, loss.png, prefix/ (the best), checkpoints/, and a task's head/.
    """
    given = pairs("--set", settings or []) | values(TrainConfig, flags)
    config = _config(run, given)
    _require_data(config)
    _require_trackers(config)
    base = common.load_base(config.model, config.dtype, config.device, config.quantise, config.lora)
    from foreword.training import train
    from foreword.training.events import EventFile, Observer, all_of
    from foreword.training.processes import leave_processes

    watching: list[Observer] = [] if (shown := live.shown()) is None else [shown]
    result = train(base, config, all_of(*watching, *([] if events is None else [EventFile(events)])))
    if leave_processes():
        _report(result, config, json)


def _config(run: str | None, flags: dict[str, Any]) -> TrainConfig:
    """Settings of the resumed run, then the file's, then the flags'."""
    from foreword.settings import build, describe, read_settings

    values = {} if run is None else read_settings(run)
    resume = flags.get("resume") or values.get("resume")
    saved = _recorded(Path(resume)) if resume else {}
    known = {name: value for name, value in saved.items() if name in describe(TrainConfig)}
    if newer := sorted(set(saved) - set(known)):
        common.note(f"the run has settings of another version, which are ignored: {', '.join(newer)}")
    given = known | values | flags
    if isinstance(start := given.get("init_prefix"), str):
        given["init_prefix"] = _start(start)
    return build(TrainConfig, given, run or "flags")


def _start(path: str) -> str:
    """Return what the run's settings say of the prefix it begins from: its folder, or a reference to the store."""
    from foreword.prefix.places import prefix_folder
    from foreword.versions.finding import means_store

    return path if means_store(path) else prefix_folder(path)


def _recorded(run: Path) -> dict[str, Any]:
    """The settings of the run to go on with."""
    common.begin()
    from foreword.training.checkpoint import find_checkpoint, read_state

    return read_state(find_checkpoint(run))[1]


def _require_data(config: TrainConfig) -> None:
    """Raise what reading would raise for data that are not there, before the base is loaded."""
    from foreword.data.readers import read_rows
    from foreword.errors import ConfigError
    from foreword.prefix.records import is_local_data

    if not config.data and not config.mixture:
        raise ConfigError("data", "name a file of rows: --data FILE")
    for source in (config.data, config.validation):
        if source and is_local_data(source) and not Path(source).is_dir():
            read_rows(source)  # reads nothing before the first row is asked for


def _require_trackers(config: TrainConfig) -> None:
    """Raise what training would raise for trackers that are not there, before the base is loaded."""
    if config.trackers:
        from foreword.training.accelerator import check_trackers

        check_trackers(config.trackers)


def _curves(run: Path) -> str:
    """Where the losses are: drawn, or as numbers where matplotlib is missing."""
    if installed("matplotlib"):
        return str(run / "loss.png")
    return f"{run / 'history.jsonl'} (pip install 'foreword[plots]' draws them in loss.png)"


def _report(result: TrainResult, config: TrainConfig, as_json: bool) -> None:
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
    console.print(
        f"prefix   {folder}  ({common.kilobytes(folder):,.0f} KB, {result.prefix.length} virtual tokens)",
        soft_wrap=True,
    )
    for label, part in (("head", result.run / "head"), ("LoRA", result.run / "lora")):
        if part.is_dir():
            console.print(f"{label}     {part}", soft_wrap=True)
    console.print(f"curves   {_curves(result.run)}", soft_wrap=True)
    if config.store is not None:
        console.print(f"stored   {config.store}")
    use = how_to_use(str(folder), result.prefix.record, config.validation or config.data)
    console.print(f"use it   {use}", soft_wrap=True)
