"""`foreword runs`: run folders, listed, found and compared. Nothing here imports PyTorch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword import status
from foreword.cli import common, tables
from foreword.cli.helping import Verbs
from foreword.errors import ConfigError

if TYPE_CHECKING:
    from foreword.runs.comparing import Comparison
    from foreword.runs.found import Found
    from foreword.runs.one_run import Run

TOLD = 10  # problems that are told one by one
app = typer.Typer(
    cls=Verbs,
    help="List, find and compare training runs. `foreword runs` lists runs/, `foreword runs FOLDER` another folder.",
    short_help="List, find and compare training runs: settings, losses, curves.",
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Folders = Annotated[list[str] | None, typer.Argument(help="Runs, or folders of runs. Default: runs/.")]
Inside = Annotated[list[str] | None, typer.Option("--in", help="Where to look; may be repeated. Default: runs/.")]
Method = Annotated[str | None, typer.Option("--method", help="Only runs of this method.")]
Base = Annotated[str | None, typer.Option("--base", help="Only runs on a base with this in its name.")]
Data = Annotated[str | None, typer.Option("--data", help="Only runs on data with this in its name.")]
Since = Annotated[
    str | None, typer.Option("--since", help="Only runs written since: 2026-01-31 (UTC), or 12h, 7d, 2w ago.")
]
Sort = Annotated[str, typer.Option("--sort", help="time (newest first), loss (lowest first) or name.")]


@app.command("list")
def listed(
    folders: Folders = None,
    text: Annotated[str, typer.Option("--find", help="Only runs that have these words; see foreword runs find.")] = "",
    method: Method = None,
    base: Base = None,
    data: Data = None,
    since: Since = None,
    sort: Sort = "time",
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """List runs: base, data, method, how far each came, and its losses.

    Folders are searched up to four levels deep. Damaged runs are listed too, with the reason. `list` may be left out.
    Example: foreword runs list runs /scratch/runs --sort loss
    """
    _list(folders, text, sort, json, method=method, base=base, data=data, since=since)


@app.command("find")
def find(
    words: Annotated[list[str], typer.Argument(help="Words, for instance a name, a base, data, or lr=0.05.")],
    folders: Inside = None,
    method: Method = None,
    base: Base = None,
    data: Data = None,
    since: Since = None,
    sort: Sort = "time",
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """Find runs by words, all of which must be in what is known of a run.

    That is its path, state, base, task, data, method, and each setting that isn't at its default.
    Example: foreword runs find e2e mlp lr=0.05
    """
    _list(folders, " ".join(words), sort, json, method=method, base=base, data=data, since=since)


@app.command("compare")
def compare(
    folders: Annotated[list[str], typer.Argument(help="Two to twelve run folders.", metavar="RUN")],
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Write one HTML file that needs no network.")
    ] = None,
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """Compare runs: settings that differ, results, and loss curves.

    The HTML file holds the runs' settings, paths among them.
    Example: foreword runs compare runs/e2e-1 runs/e2e-2 --html runs.html
    """
    from foreword.runs.comparing import compare as compared

    if html is not None and not html.endswith((".html", ".htm")):
        raise ConfigError("--html", f"{html!r:.200} must end in .html")
    status.doing("reading runs")
    found = compared(*folders)
    if html is not None:
        from foreword.files import write_text
        from foreword.runs.page import page

        write_text(Path(html), page(found))
    if json:
        common.print_json(found.facts() | ({} if html is None else {"html": html}))
        return
    _print_comparison(found)
    if html is not None:
        tables.print_text(f"written: {html}")


def _list(folders: Sequence[str] | None, text: str, sort: str, json: bool, **wanted: Any) -> None:
    from foreword.runs.found import chosen, search

    status.doing("reading runs")
    looked, found = _searched(folders, search)
    runs = chosen(found.runs, text, sort=sort, **wanted)
    if json:
        common.print_json({"runs": [run.facts() for run in runs], "notes": found.notes})
        return
    if not runs:
        few = f"none of {len(found.runs):,} runs in {looked} is meant" if found.runs else f"no runs in {looked}"
        tables.print_text(few)
    else:
        _print_runs(runs)
    problems = [f"{run.path}: {problem}" for run in runs for problem in run.problems]
    _tell([*found.notes, *problems])


def _searched(folders: Sequence[str] | None, search: Any) -> tuple[str, Found]:
    """Return (where was looked, what was found). No runs/ yet is nothing wrong."""
    from foreword.runs.found import FOLDER
    from foreword.runs.found import Found as Nothing

    if folders:
        return ", ".join(folders), search(folders)
    return f"{FOLDER}/", search([FOLDER]) if os.path.isdir(FOLDER) else Nothing()


def _tell(notes: Sequence[str]) -> None:
    for note in notes[:TOLD]:
        common.note(common.one_line(note))
    if len(notes) > TOLD:
        common.note(f"and {len(notes) - TOLD:,} more; --json has all of them")


def _print_runs(runs: Sequence[Run]) -> None:
    """Print a table of runs. What is the same for all of them is said once, above it."""
    columns = {
        "base": [run.base for run in runs],
        "task": [run.task for run in runs],
        "data": [run.data for run in runs],
        "method": [run.method for run in runs],
        "length": ["?" if run.length is None else str(run.length) for run in runs],
    }
    same = {name: texts[0] for name, texts in columns.items() if len(runs) > 1 and len(set(texts)) == 1}
    shown: dict[str, list[str]] = {
        "run": [str(run.path) for run in runs],
        "written (UTC)": ["" if run.written is None else f"{run.written:%Y-%m-%d %H:%M}" for run in runs],
        **{name: texts for name, texts in columns.items() if name not in same},
        "state": [run.state for run in runs],
        "steps": [run.progress() for run in runs],
        "validation loss": [run.losses() for run in runs],
        "KB": ["" if run.prefix_bytes is None else f"{run.prefix_bytes / 1000:,.0f}" for run in runs],
    }
    metrics = dict.fromkeys(name for run in runs for name in run.metrics if name not in shown)
    for name in metrics:
        shown[name] = [f"{run.metrics[name]:.4g}" if name in run.metrics else "" for run in runs]
    if same:
        tables.print_text(f"{len(runs):,} runs; each: " + ", ".join(f"{name} {text}" for name, text in same.items()))
    _print_columns(shown, right={"length", "steps", "KB", *metrics})


def _print_columns(columns: dict[str, list[str]], right: Iterable[str] = ()) -> None:
    table = common.table()
    for title in columns:
        table.add_column(common.one_line(title), no_wrap=True, justify="right" if title in right else "left")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(common.one_line, cells))
    tables.print_table(table)


def _print_comparison(found: Comparison) -> None:
    from foreword.runs.comparing import value_texts
    from foreword.runs.drawing import letter

    marks = [letter(number) for number in range(len(found.runs))]
    tables.print_facts(zip(marks, (str(run.path) for run in found.runs), strict=True))
    settings = {name: value_texts(values) for name, values in found.settings.items()}
    tables_of: dict[str, Mapping[str, tuple[str, ...]]] = {"setting": settings, "result": found.results}
    for title, rows in tables_of.items():
        names = list(rows)
        if names:
            by_run = {mark: [rows[name][at] for name in names] for at, mark in enumerate(marks)}
            _print_columns({title: names} | by_run)
        else:
            tables.print_text(f"no {title} differs")
    for caution in found.cautions:
        tables.print_text(f"careful: {caution}")
    _print_curves("validation loss", marks, [each.validation for each in found.curves])
    _print_curves("training loss", marks, [each.training for each in found.curves])
    _tell([f"{run.path}: {problem}" for run in found.runs for problem in run.problems])


def _print_curves(title: str, marks: Sequence[str], series: Sequence[Any]) -> None:
    from foreword.cli.plot import SEVERAL, overlay

    lines = overlay(list(zip(marks, series, strict=True)), common.out().width - 1)
    if not lines:
        return
    several = f" ({SEVERAL}: more than one)" if any(SEVERAL in line for line in lines) else ""
    tables.print_text(f"\n{title} by step, in nats{several}")
    for line in lines:
        common.out().print(line, soft_wrap=True)
