"""`foreword store`: a home for prefixes. Nothing here imports PyTorch but `add`, which reads every tensor."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import common, tables
from foreword.cli.flags import pairs
from foreword.cli.helping import Group
from foreword.cli.stored import as_json, print_entries, print_version, usage
from foreword.errors import ConfigError, PrefixFormatError

if TYPE_CHECKING:
    from foreword.store import Store

app = typer.Typer(
    cls=Group,
    help="Keep prefixes by name: versions that never change, tags that move.",
    short_help="Keep prefixes by name: add, list, show, tag, verify, push, pull.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Place = Annotated[
    str | None,
    typer.Option("--store", help="The store: a folder or an fsspec URL. Default: $FOREWORD_STORE, else your own."),
]
Named = Annotated[str, typer.Argument(metavar="TEAM/TASK", help="A name: team/task.")]
Reference = Annotated[
    str, typer.Argument(metavar="TEAM/TASK[@VERSION]", help="A name, with a tag or digest behind @; else its latest.")
]


@app.command("add")
def add(
    prefix: common.SavedPrefix,
    name: Named,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A tag beside latest; may be repeated.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME=NUMBER", help="What was measured; may be repeated.")
    ] = None,
    metrics: Annotated[
        Path | None, typer.Option("--metrics", help="What `foreword eval --json` printed, in a file.")
    ] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="An SPDX name, such as apache-2.0.")] = None,
    description: Annotated[str | None, typer.Option("--description", help="What it is for, in plain words.")] = None,
    store: Place = None,
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """Add a trained prefix as a new version, and let the tag latest mean it.

    Example: foreword store add runs/e2e sales/descriptions --licence apache-2.0
    """
    common.begin()
    version = _store(store).add(
        prefix,
        name,
        tags=tag or (),
        metrics=_metrics(metrics) | {key: float(value) for key, value in _numbers(metric).items()},
        licence=licence,
        description=description,
    )
    if json:
        common.print_json({"name": name, "digest": version.digest, "facts": dict(version.facts)})
        return
    common.out().print(f"added   {name}@{version.digest[:12]}  ({version.facts['bytes'] / 1000:,.0f} KB)")
    common.out().print(f"use it  {usage(version, name)}", soft_wrap=True)


@app.command("list")
def listed(
    name: Annotated[str | None, typer.Argument(metavar="[TEAM/TASK]", help="Only the versions of this name.")] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="Only what fits this model: hub id, folder, .gguf file or bundled name."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Versions without a tag too.")] = False,
    store: Place = None,
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """List prefixes: base, method, size, metrics, tags and age.

    Example: foreword store list --base smollm2-135m
    """
    entries = _store(store).entries(name, fits=_config(base))
    shown = [entry for entry in entries if entry.tags or every or name]
    if json:
        common.print_json([as_json(entry) for entry in shown])
        return
    if not shown:
        common.note(f"{_store(store).url} has no such prefix; foreword store add FOLDER team/task adds one")
        return
    print_entries(shown)


@app.command("show")
def show(reference: Reference, store: Place = None, json: common.Json = False, debug: common.Debug = False) -> None:
    """Show a version: what it is, what it was measured on, its tags, and how to run it.

    Example: foreword store show sales/descriptions@prod
    """
    home = _store(store)
    version = home.version(reference)
    tags = [tag for tag, digest in home.tags(version.name).items() if digest == version.digest]
    if json:
        files = {name: {"bytes": file.size, "sha256": file.sha256} for name, file in version.files.items()}
        common.print_json({"digest": version.digest, "tags": tags, "facts": dict(version.facts), "files": files})
        return
    print_version(version, tags, reference)


@app.command("path")
def path(reference: Reference, store: Place = None, debug: common.Debug = False) -> None:
    """Print the folder of a version on this machine, for other programs. It must not be changed.

    Example: cat "$(foreword store path sales/descriptions)/README.md"
    """
    with _store(store).open(reference) as folder:
        typer.echo(str(folder))


@app.command("tag")
def tag(
    reference: Reference,
    name: Annotated[str, typer.Argument(metavar="TAG", help="The tag to set, for instance prod.")],
    expected: Annotated[
        str | None,
        typer.Option("--if", metavar="DIGEST", help="Only if the tag means this version until now; none: no such tag."),
    ] = None,
    store: Place = None,
    debug: common.Debug = False,
) -> None:
    """Let a tag mean a version. It is replaced as a whole: readers see the old or the new.

    Example: foreword store tag sales/descriptions prod
    """
    from foreword.versions.place import ANYTHING

    wanted = ANYTHING if expected is None else None if expected == "none" else expected
    digest = _store(store).tag(reference, name, expected=wanted)
    common.out().print(f"{reference.partition('@')[0]}@{name} is {digest[:12]}")


@app.command("rm")
def remove(reference: Reference, store: Place = None, debug: common.Debug = False) -> None:
    """Remove a tag (team/task@tag), or a version that no tag means (team/task@digest).

    Example: foreword store rm sales/descriptions@old
    """
    _store(store).remove(reference)
    common.out().print(f"removed  {reference}")


@app.command("verify")
def verify(
    name: Annotated[
        str | None, typer.Argument(metavar="[TEAM/TASK[@VERSION]]", help="Only this name or version. Default: all.")
    ] = None,
    store: Place = None,
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """Read every byte and compare it with the digests. Exit code 1 if something is damaged.

    Example: foreword store verify
    """
    count, problems = _store(store).verify(name)
    if json:
        common.print_json({"versions": count, "problems": [vars(problem) for problem in problems]})
    else:
        for problem in problems:
            tables.print_text(f"{problem.where}: {problem.what}")
        common.out().print(f"{count:,} versions read, {len(problems):,} problems")
    if problems:
        raise PrefixFormatError(f"{len(problems)} problems in {_store(store).url}; add or pull these versions again")


@app.command("gc")
def collect(
    days: Annotated[float, typer.Option("--older-than", min=0, help="Days since a version was added.")] = 30,
    dry: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
    store: Place = None,
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """Remove old versions that no tag means and that nobody reads.

    A remote store marks them first and removes them in a later collection, an hour on.
    Example: foreword store gc --dry-run
    """
    done = _store(store).gc(older_than=timedelta(days=days), dry_run=dry)
    if json:
        common.print_json([{"version": version, "done": what} for version, what in done])
        return
    for version, what in done:
        tables.print_text(f"{version}: {what}")
    common.out().print(f"{len(done):,} versions without a tag")


@app.command("push")
def push(
    reference: Reference,
    to: Annotated[str, typer.Argument(metavar="TO", help="Another store, or hf://org/name on the Hugging Face hub.")],
    store: Place = None,
    debug: common.Debug = False,
) -> None:
    """Copy a version and its tag to another store or to the hub.

    Example: foreword store push sales/descriptions@prod s3://bucket/prefixes
    """
    version = _store(store).push(reference, to)
    common.out().print(f"pushed  {version.name}@{version.digest[:12]} to {to}", soft_wrap=True)


@app.command("pull")
def pull(
    reference: Reference,
    source: Annotated[str, typer.Argument(metavar="FROM", help="Another store, or hf://org/name.")],
    store: Place = None,
    debug: common.Debug = False,
) -> None:
    """Copy a version from another store or from the hub into this one. Every byte is checked.

    Example: foreword store pull sales/descriptions@prod s3://bucket/prefixes
    """
    version = _store(store).pull(reference, source)
    common.out().print(f"pulled  {version.name}@{version.digest[:12]} from {source}", soft_wrap=True)


def _store(place: str | None) -> Store:
    from foreword.store import Store

    return Store(place)


def _metrics(file: Path | None) -> dict[str, float]:
    """Return the metrics in a file. Raises `ConfigError` unless it is what `foreword eval --json` prints."""
    if file is None:
        return {}
    from foreword.files import Unreadable, read_json

    try:
        value = read_json(file)
    except Unreadable as error:
        raise ConfigError("--metrics", f"{file} {error}") from error
    found = value.get("metrics", value) if isinstance(value, dict) else None
    if not isinstance(found, dict) or not all(type(number) in (int, float) for number in found.values()):
        raise ConfigError("--metrics", f"{file} must hold numbers by name, as foreword eval --json prints them")
    return found


def _numbers(given: Sequence[str] | None) -> dict[str, Any]:
    found = pairs("--metric", list(given or []))
    for name, value in found.items():
        if not re.fullmatch(r"-?\d+(\.\d+)?([eE][-+]?\d+)?", str(value)):
            raise ConfigError("--metric", f"{name}={value!s:.40} is no number")
    return found


def _config(base: str | None) -> Any:
    """Return the configuration of the base that is asked for; its weights are not read."""
    if base is None:
        return None
    common.begin()
    from foreword.base.loading import load_config

    return load_config(base)
