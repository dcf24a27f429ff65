"""`foreword demo`: the main job, on data every Python has."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from foreword.cli import common, live, tables
from foreword.extras import require_all

if TYPE_CHECKING:
    from foreword.demo.task import DemoData
    from foreword.evaluation import EvalResult


def command(
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps.")] = 20,
    rows: Annotated[int, typer.Option("--rows", min=5, help="Held-out functions to measure on.")] = 30,
    model: common.Model = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Folder for data, run and prefix. Default: a new one in runs/."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the row order.")] = 0,
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """Teach SmolLM2-135M to sum up a Python function in one line, and compare with not training.

    The data is this interpreter's own standard library, split by module. About five minutes on two cores.
    """
    from foreword.errors import ConfigError
    from foreword.files import free_name

    output = output or free_name(Path("runs/demo"))
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError("--output", f"{output} exists and is not empty; remove it or choose another folder")
    require_all("demo", ("sacrebleu", "rouge_score"), "to measure what the demo has trained")
    began = time.monotonic()
    base = common.load_base(common.model_for(model, None))
    from foreword.demo.run import DemoConfig, compare, peak_megabytes, train_demo

    config = DemoConfig(steps=steps, rows=rows, seed=seed, output=str(output))
    if not json:
        common.note(f"training a {config.length}-token prefix on {base.name}; its weights stay as they are")
    data, result = train_demo(base, config, live.shown())
    contenders = compare(base, data, result)
    prefix = result.run / "prefix"
    facts: dict[str, Any] = {
        "prefix": str(prefix),
        "prefix_kilobytes": common.kilobytes(prefix),
        "model_kilobytes": sum(p.numel() * p.element_size() for p in base.model.parameters()) / 1000,
        "seconds": time.monotonic() - began,
        "peak_megabytes": peak_megabytes(),
    }
    if json:
        metrics = {name: measured.metrics for name, measured in contenders.items()}
        common.print_json({"contenders": metrics, "rows": len(data.held_out)} | facts)
        return
    _print_table(contenders, len(data.held_out))
    _print_answers(contenders, data)
    _print_facts(facts)


def _print_table(contenders: dict[str, EvalResult], rows: int) -> None:
    table = Table(title=f"{rows} functions of modules that were not trained on")
    table.add_column("")
    for column in ("validation loss ↓", "perplexity ↓", "ROUGE-L ↑", "BLEU ↑"):
        table.add_column(column, justify="right")
    for name, measured in contenders.items():
        values = measured.metrics
        cells = (
            f"{values['loss']:.3f}",
            f"{values['perplexity']:.1f}",
            f"{values['rouge_l']:.1f}",
            f"{values['bleu']:.1f}",
        )
        table.add_row(name, *cells, style="bold" if name == "prefix, trained" else None)
    tables.print_table(table)


def _print_answers(contenders: dict[str, EvalResult], data: DemoData, shown: int = 5) -> None:
    """Held-out functions, spread over the validation rows, with what each contender says."""
    held_out = data.held_out
    for number in range(shown):
        row = number * len(held_out) // shown
        said = {name: measured.texts[row] or "(nothing)" for name, measured in contenders.items()}
        tables.print_text(f"\n{held_out[row].module}.{held_out[row].name}")
        facts = {"code": _short(held_out[row].code), "docstring": held_out[row].summary}
        tables.print_facts((facts | said).items(), indent=2)


def _print_facts(facts: dict[str, Any]) -> None:
    prefix, size, weights = facts["prefix"], facts["prefix_kilobytes"], facts["model_kilobytes"]
    lines = (
        f"\nprefix saved in {prefix}: {size:,.0f} KB, beside the model's {weights:,.0f} KB (1 : {weights / size:,.0f})",
        f"took {facts['seconds']:.0f} s, at most {facts['peak_megabytes'] / 1000:.1f} GB of memory",
        "\nnext:",
        f"  foreword show {prefix}",
        f"  foreword generate --prefix {prefix} 'def area(w, h): return w * h'",
        "  foreword train --data your.jsonl --template '{input}\\nSummary:'",
    )
    for line in lines:
        common.out().print(line, soft_wrap=True)


def _short(code: str, lines: int = 6) -> str:
    kept = code.splitlines()
    return "\n".join(kept[:lines] + (["    …"] if len(kept) > lines else []))
