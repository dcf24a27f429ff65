"""`foreword`: the entry point. Errors become one line on stderr and an exit code; `--debug` shows the traceback."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from foreword import status
from foreword._version import __version__
from foreword.cli import (
    chat,
    common,
    compress,
    demo,
    doctor,
    evaluate,
    export,
    generate,
    importing,
    live,
    methods,
    run_llamacpp,
    runs,
    show,
    slots,
    store,
    train,
)
from foreword.cli.helping import Verb
from foreword.cli.stopping import Terminated, speaks, terminable, told
from foreword.errors import ConfigError, DataError, ForewordError, InterruptedRunError
from foreword.quiet import silence

IMPORTING = 1.0  # seconds until the first line: while Python imports, the line can be late
LISTED = 20  # bad rows that are named one by one; of more, the error's text names the first
# Click's own base of usage errors; Typer carries its own copy of Click
_USAGE: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    help="Train, measure and run learned prefixes on frozen language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.command)
app.command("train")(train.command)
app.command("generate")(generate.command)
app.command("chat")(chat.command)
app.command("eval")(evaluate.command)
app.command("compress")(compress.command)
app.command("export")(export.command)
app.command("import")(importing.command)
app.command("run-llamacpp")(run_llamacpp.command)
app.command("slots")(slots.command)
app.command("show")(show.command)
app.command("methods")(methods.command)
app.command("doctor")(doctor.command)
app.add_typer(runs.app, name="runs")
app.add_typer(store.app, name="store")
for verb in (*app.registered_commands, *runs.app.registered_commands, *store.app.registered_commands):
    verb.cls = Verb


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"foreword {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    place: Annotated[
        str | None,
        typer.Option("--store", help="The store of prefixes: a folder or an fsspec URL. Default: $FOREWORD_STORE."),
    ] = None,
) -> None:
    """Train, measure and run learned prefixes on frozen language models."""
    if place is not None:
        from foreword.versions.finding import using_store

        common.hold(using_store(place))


def run() -> None:
    """Run the command line and exit: 0 on success, 2 for wrong usage or settings, 130 on Ctrl-C and 143
    on SIGTERM (a training run that has begun is saved first), else 1."""
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    debug = "--debug" in arguments
    warnings.showwarning = _show_warning
    warnings.filterwarnings("ignore", category=FutureWarning)
    silence()
    try:
        with terminable(), _shown(), common.holding():
            result = app(arguments, prog_name="foreword", standalone_mode=False)
    except _USAGE as error:
        common.say(_misused(error))
        return int(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _stopped(signal.SIGINT)
    except Terminated:
        return _stopped(signal.SIGTERM)
    except BrokenPipeError:
        return 1
    except ForewordError as error:
        if debug:
            raise
        problems = error.problems if isinstance(error, DataError) and len(error.problems) <= LISTED else ()
        for problem in problems[DataError.shown :]:
            common.say(f"bad row: {problem}")
        if isinstance(error, InterruptedRunError):
            if speaks():
                common.say(common.one_line(error))
        else:
            common.say(f"error: {common.one_line(error)} (help: {error.anchor})")
        return 2 if isinstance(error, ConfigError) else getattr(error, "exit_code", 1)
    except Exception as error:
        if debug:
            raise
        common.say(_told(error))
        return 1
    if result == 130:  # Typer's own answer to Ctrl-C
        return _stopped(signal.SIGINT)
    return int(result) if isinstance(result, int) else 0


@contextmanager
def _shown() -> Iterator[None]:
    """Within the block what takes long is shown, by the first of several processes."""
    if not speaks():
        yield
        return
    loaded = "torch" in sys.modules
    first = status.FIRST if loaded else IMPORTING
    with live.showing(live.Live(common.err(), common.echo, first=first)) as shown:
        shown.doing("starting" if loaded else common.LOADING)
        yield


def _stopped(number: signal.Signals) -> int:
    if speaks():
        common.say(told(number))
    return 128 + number


def _misused(error: Any) -> str:
    """One line about wrong usage, and where the right one is shown."""
    if not str(error.format_message()).strip():  # no command: the help was shown
        return ""
    command = getattr(getattr(error, "ctx", None), "command_path", "foreword")
    return f"error: {common.one_line(error.format_message()).rstrip('.')}; see {command} -h"


def _told(error: Exception) -> str:
    """One line about an error that Foreword didn't raise. A file that can't be used is no fault in the program."""
    if isinstance(error, OSError) and isinstance(error.filename, str):
        return f"error: {error.filename:.200}: {error.strerror}"
    first = (str(error).strip().splitlines() or [""])[0]
    return f"unexpected {type(error).__name__}: {first} (--debug shows more)"


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if category.__module__.startswith("foreword"):
        common.note(str(message))
