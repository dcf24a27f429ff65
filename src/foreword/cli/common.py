"""What the commands share: options, consoles, progress, and loading a base with its notes."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from foreword import status
from foreword.cli import live
from foreword.errors import ConfigError

if TYPE_CHECKING:
    from foreword.base import Base

T = TypeVar("T")
_WHERE = "A saved prefix's folder, its run's, or team/task[@tag] of the store"
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for programs instead of text.")]
Debug = Annotated[bool, typer.Option("--debug", help="On an error, show the traceback.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Base model: hub id, folder, .gguf file, or the bundled smollm2-135m. "
        "Default: the base of the prefix, else smollm2-135m.",
    ),
]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N or auto.")]
Quantise = Annotated[
    str | None,
    typer.Option("--quantise", help="Frozen weights in fewer bits: int8 (torchao), bnb-8bit or bnb-4bit (CUDA)."),
]
Lora = Annotated[str | None, typer.Option("--lora", help="Folder of a PEFT LoRA to put on the base.")]
Template = Annotated[
    str | None,
    typer.Option(
        "--template",
        help=r"The whole prompt, with {field} for a row's field; \n is a new line. Default: the model's chat template.",
    ),
]
Temperature = Annotated[
    float | None, typer.Option("--temperature", min=0, help="Sample with this temperature; 0 or none: greedily.")
]
TopP = Annotated[
    float | None, typer.Option("--top-p", min=0, max=1, help="Sample from the likeliest tokens of this mass.")
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of sampling. Default: a new one.")]
SavedPrefix = Annotated[str, typer.Argument(help=f"{_WHERE}.")]
Prefix = Annotated[str | None, typer.Option("--prefix", help=f"{_WHERE}. Default: the plain base.")]


# Control characters, line separators, half surrogate pairs, and marks that turn the reading direction
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


_held: ContextVar[ExitStack] = ContextVar("held")


@contextmanager
def holding() -> Iterator[None]:
    """Let `hold` hold things until the end of the block, which is one command."""
    with ExitStack() as held:
        token = _held.set(held)
        try:
            yield
        finally:
            _held.reset(token)


def hold(thing: AbstractContextManager[T]) -> T:
    """Enter `thing` and return what it yields; it is left at the end of the command."""
    return _held.get().enter_context(thing)


def printable(text: str, keep: str = "") -> str:
    r"""Return `text` with each character that could steer a terminal as an escape such as `\x1b`.

    Texts from files may hold such characters. keep: those of them that stay, for instance new lines.
    """
    return _UNPRINTABLE.sub(lambda match: match[0] if match[0] in keep else _escaped(match[0]), text)


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


class _Printer(Console):
    """A console whose text is `printable`; colours and cursor movements are Rich's own."""

    def print(self, *objects: Any, **options: Any) -> None:
        if not self.stderr:
            live.settle()
        super().print(*objects, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else printable(segment.text, keep="\n")
            yield segment if text == segment.text else Segment(text, segment.style, segment.control)


def listing(entries: Callable[[], Mapping[str, str]]) -> Callable[[bool], None]:
    """Return the callback of a --list flag, which prints names with their summaries and ends the command."""

    def show(asked: bool) -> None:
        if asked:
            for name, summary in entries().items():
                typer.echo(f"{name}  {summary}")
            raise typer.Exit

    return show


def out() -> Console:
    """Results."""
    return _Printer(highlight=False, markup=False)


def err() -> Console:
    """Notes, and what is going on."""
    return _Printer(stderr=True, highlight=False, markup=False)


def table() -> Table:
    """An empty table without lines between its columns, so that more of them fit a narrow terminal."""
    return Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def print_json(value: Any) -> None:
    """Print valid JSON: what is not finite becomes null, and characters that could steer a terminal are escaped."""
    live.settle()
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    typer.echo(_UNPRINTABLE.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def say(text: str) -> None:
    """Print one line on stderr, whatever characters are in it."""
    if (shown := live.shown()) is None:
        echo(text)
    else:
        shown.say(text)


def echo(text: str) -> None:
    typer.echo(printable(text), err=True)


def one_line(text: object) -> str:
    """The text of an error or a message, whatever lines it has."""
    return " ".join(str(text).split())


def note(text: str) -> None:
    say(f"note: {text}")


LOADING = "loading PyTorch and Transformers"


def begin(what: str = LOADING) -> None:
    """Say what is going on, at once if PyTorch is still to be imported: that takes seconds."""
    status.doing(what)
    if "torch" not in sys.modules and (shown := live.shown()) is not None:
        shown.tell()


def load_base(
    model: str,
    dtype: str | None = None,
    device: str | None = None,
    quantise: str | None = None,
    lora: str | None = None,
) -> Base:
    """`foreword.load` without other libraries' progress bars; what takes long is said on stderr."""
    begin(f"loading {model}")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "off")  # rows are tokenised with threads: `data.tokenizing`
    from transformers.utils import logging as transformers_logging

    from foreword.base import load

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    return load(model, dtype=dtype or "float32", device=device or "auto", quantise=quantise, lora=lora, announce=note)


def model_for(model: str | None, prefix: str | None) -> str:
    """The base to load: the one named, else the one a prefix was made on, else the default.

    Where a prefix's base is a local folder, its path is in the run folder that the prefix lies in. Raises `ConfigError`
    if the path is not known or is gone.
    """
    from foreword.config import DEFAULT_MODEL

    if model == "":
        raise ConfigError("--model", "is empty; name a hub id, a folder or a .gguf file")
    if model is not None or prefix is None:
        return model or DEFAULT_MODEL
    from foreword.prefix import Fingerprint
    from foreword.prefix.records import is_local, run_settings
    from foreword.prefix.stored import MANIFEST, read_manifest

    manifest = read_manifest(Path(prefix))
    recorded = Fingerprint.from_manifest(manifest["base"], str(Path(prefix) / MANIFEST)).source or DEFAULT_MODEL
    of_run = run_settings(prefix, manifest["record"]).get("model")
    for name in (of_run, recorded):
        if isinstance(name, str) and (not is_local(name) or os.path.exists(name)):
            return name
    raise ConfigError(
        "--model",
        f"the prefix was made on the local base {of_run or recorded}, which is not there; say where it is with --model",
    )


def kilobytes(path: Path) -> float:
    """Size of a file or folder in KB of 1,000 bytes."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1000
