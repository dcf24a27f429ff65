"""What the commands share: options, consoles, progress, and loading a base with its notes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from foreword.base import Base

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
SavedPrefix = Annotated[str, typer.Argument(help="A saved prefix's folder.")]
Prefix = Annotated[str | None, typer.Option("--prefix", help="A saved prefix's folder. Default: the plain base.")]


def out() -> Console:
    """Results."""
    return Console(highlight=False, markup=False)


def err() -> Console:
    """Progress and notes; `is_terminal` says whether to show progress."""
    return Console(stderr=True, highlight=False, markup=False)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def load_base(
    model: str,
    dtype: str | None = None,
    device: str | None = None,
    quantise: str | None = None,
    lora: str | None = None,
) -> Base:
    """`foreword.load` without other libraries' progress bars; long steps are announced on stderr."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    from foreword.base import load

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    return load(model, dtype=dtype or "float32", device=device or "auto", quantise=quantise, lora=lora, announce=note)


def note(text: str) -> None:
    typer.echo(f"note: {text}", err=True)


def model_for(model: str | None, prefix: str | None) -> str:
    """The base to load: the one named, else the one a prefix was made on, else the default."""
    from foreword.config import DEFAULT_MODEL

    if model is not None:
        return model
    if prefix is not None:
        from foreword.prefix.stored import read_manifest

        return str(read_manifest(Path(prefix))["base"].get("source") or DEFAULT_MODEL)
    return DEFAULT_MODEL


@contextmanager
def bar(console: Console, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar fed with (what, done, total); shows on a terminal only."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield update


def kilobytes(path: Path) -> float:
    """Size of a file or folder in KB of 1,000 bytes."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1000
