"""`foreword generate`: answers with or without a prefix."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from foreword.cli import common
from foreword.cli.flags import unescape

MOST_INPUT = 100 * 2**20  # bytes of a file of inputs


def command(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="Inputs. Without any, and without --file, they are read from stdin, one a line."),
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A file with one input a line.")] = None,
    prefix: common.Prefix = None,
    model: common.Model = None,
    template: common.Template = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 64,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Inputs answered at once.")] = 16,
    dtype: common.Dtype = None,
    device: common.Device = None,
    quantise: common.Quantise = None,
    lora: common.Lora = None,
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """Answer inputs, greedily. Each input is rendered as the prefix was trained (its template).

    Example: foreword generate --prefix runs/e2e/prefix 'name : The Vaults | food : French'
    """
    inputs = _inputs(prompts, file)
    common.begin()
    from foreword.prefix import Prefix

    attached = None if prefix is None else Prefix.load(prefix)
    base = common.load_base(common.model_for(model, prefix), dtype, device, quantise, lora)
    done = 0
    with common.bar(common.err(), quiet=json) as update:

        def progress(count: int) -> None:
            nonlocal done
            done += count
            update("generating", done, len(inputs))

        texts = base.generate(
            inputs,
            attached,
            max_new_tokens=max_new_tokens,
            template=None if template is None else unescape(template),
            batch_size=batch_size,
            progress=progress,
        )
    if json:
        common.print_json([{"input": prompt, "text": text} for prompt, text in zip(inputs, texts, strict=True)])
        return
    for text in texts:  # a file or another program gets them as they are
        typer.echo(common.printable(text, keep="\n\t") if sys.stdout.isatty() else text)


def _inputs(prompts: list[str] | None, file: Path | None) -> list[str]:
    from foreword.errors import ConfigError
    from foreword.files import Unreadable, read_text

    if prompts and file:
        raise ConfigError("--file", "give inputs as arguments or in a file, not both")
    if file is not None:
        try:
            lines = read_text(file, MOST_INPUT).splitlines()
        except Unreadable as error:
            raise ConfigError("--file", f"{file} {error}; what is no file can be given on stdin") from error
    else:
        lines = prompts or sys.stdin.read().splitlines()
    inputs = [line for line in lines if line.strip()]
    if not inputs:
        raise ConfigError("prompts", "there is no input; give one as an argument, in --file, or on stdin")
    return inputs
