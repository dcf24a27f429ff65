"""`foreword chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import common, live
from foreword.cli.prefixes import Prefixes

if TYPE_CHECKING:
    from foreword.chat import Session


def command(
    prefix: Annotated[
        list[str] | None,
        typer.Option(
            "--prefix", help="A prefix's folder, its run's, or team/task; may be repeated, the first answers."
        ),
    ] = None,
    system: Annotated[str, typer.Option("--system", help="The system's text.")] = "",
    model: common.Model = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 256,
    temperature: common.Temperature = None,
    top_p: common.TopP = None,
    seed: common.Seed = None,
    dtype: common.Dtype = None,
    device: common.Device = None,
    quantise: common.Quantise = None,
    lora: common.Lora = None,
    debug: common.Debug = False,
) -> None:
    """Talk to a model, with or without prefixes. Answers stream; Ctrl-C stops one, Ctrl-D leaves.

    /prefix NAME switches within the conversation; /help lists all commands. From a pipe, each line is a turn.

    Example: foreword chat --prefix runs/formal --prefix runs/short
    """
    common.begin()
    known = Prefixes(prefix or [])
    base = common.load_base(common.model_for(model, known.first), dtype, device, quantise, lora)
    from foreword.base.generation import require_generating
    from foreword.chat import Session
    from foreword.cli.generate import sampling, set_seed

    require_generating(base)
    loaded = {name: prefix for name, prefix in known.load(base).items() if name is not None and prefix is not None}
    set_seed(seed)
    session = Session(base, loaded, system, {"max_new_tokens": max_new_tokens} | sampling(temperature, top_p))
    if sys.stdin.isatty():
        common.say(f"{base.name}, prefix {session.name}; /help lists commands, Ctrl-D leaves")
    talk(session, lines())


def lines() -> Callable[[], str]:
    """Return a function that asks for the next line. It raises `EOFError` at the end, `KeyboardInterrupt` on Ctrl-C."""
    if not sys.stdin.isatty():
        return _piped
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory
    except ImportError:
        import readline  # noqa: F401 - gives input() its line editing

        common.note("pip install 'foreword[chat]' for a history that stays")
        return lambda: input("> ")
    from foreword.files import cache_folder

    cache_folder().mkdir(parents=True, exist_ok=True)
    asked: Any = PromptSession(history=FileHistory(str(cache_folder() / "chat-history")))
    return lambda: str(asked.prompt("> "))


def _piped() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def talk(session: Session, ask: Callable[[], str]) -> None:
    """Answer line after line until there is none, or /exit."""
    from foreword.chat.commands import Leave, run
    from foreword.errors import ForewordError

    while True:
        live.settle()
        try:
            line = ask()
        except EOFError:
            return
        except KeyboardInterrupt:
            common.say("Ctrl-D or /exit leaves")
            continue
        try:
            if line.startswith("/"):
                common.say(run(session, line))
            elif line.strip():
                _answer(session, line)
        except Leave:
            return
        except ForewordError as error:
            common.say(f"error: {common.one_line(error)}")


def _answer(session: Session, line: str) -> None:
    live.settle()
    pieces = session.answer(line)
    shown = (lambda text: common.printable(text, keep="\n\t")) if sys.stdout.isatty() else str
    try:
        for piece in pieces:
            typer.echo(shown(piece), nl=False)
    except KeyboardInterrupt:
        typer.echo(" …", nl=False)
    finally:
        pieces.close()  # type: ignore[attr-defined]
        typer.echo()
