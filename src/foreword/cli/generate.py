"""`foreword generate`: answers with or without a prefix, or each row with its own."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import common, live
from foreword.cli.asked import asked
from foreword.cli.flags import unescape
from foreword.cli.prefixes import Prefixes

if TYPE_CHECKING:
    from foreword.base import Base


def command(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            help="Inputs: texts, or JSON objects where the prefix needs several fields or takes messages. "
            "Without any, and without --file, they are read from stdin, one a line."
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", help="Inputs: rows in any shape and format that training reads, or a text, one a line."),
    ] = None,
    prefix: Annotated[
        list[str] | None,
        typer.Option(
            "--prefix",
            help="A saved prefix's folder, its run's, or team/task; may be repeated: one for each input in order, or "
            "as the rows' column says. Default: the plain base.",
        ),
    ] = None,
    prefix_field: Annotated[
        str | None,
        typer.Option(
            "--prefix-field",
            help="The column that names each row's prefix: the folder's or run's name, or as given to --prefix. "
            "Default: prefix, where there are several.",
        ),
    ] = None,
    model: common.Model = None,
    template: common.Template = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 64,
    temperature: common.Temperature = None,
    top_p: common.TopP = None,
    seed: common.Seed = None,
    num: Annotated[int, typer.Option("--num", min=1, max=1000, help="Answers to each input.")] = 1,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Inputs answered at once.")] = 16,
    dtype: common.Dtype = None,
    device: common.Device = None,
    quantise: common.Quantise = None,
    lora: common.Lora = None,
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """Answer inputs. Each is rendered as its prefix was trained. A single answer streams to the terminal.

    Example: foreword generate --prefix runs/e2e 'name : The Vaults | food : French'

    Example: foreword generate --file rows.jsonl --prefix runs/formal --prefix runs/short --prefix-field style
    """
    sampled = sampling(temperature, top_p, num)
    common.begin()
    known = Prefixes(prefix or [])
    inputs = asked(prompts, file, known.templates())
    names = known.of_inputs(inputs, prefix_field)
    base = common.load_base(common.model_for(model, known.first), dtype, device, quantise, lora)
    loaded = known.load(base)
    set_seed(seed)
    options = {
        "max_new_tokens": max_new_tokens,
        "template": None if template is None else unescape(template),
    } | sampled
    if len(inputs) == num == 1 and sys.stdout.isatty() and not json:
        _stream(base, inputs[0], loaded[names[0]], options)
        return
    rows = [(entry, name) for entry, name in zip(inputs, names, strict=True) for _ in range(num)]
    texts = base.generate(
        [entry for entry, _ in rows], [loaded[name] for _, name in rows], batch_size=batch_size, **options
    )
    _print(rows, texts, json, several=len(known.names) > 1)


def sampling(temperature: float | None, top_p: float | None, num: int = 1) -> dict[str, Any]:
    """Options of Transformers' `generate`. Raises `ConfigError` for several equal answers."""
    from foreword.errors import ConfigError

    given = {"temperature": temperature or None, "top_p": top_p}
    sampled = {name: value for name, value in given.items() if value is not None}
    if not sampled and num > 1:
        raise ConfigError("--num", f"{num} greedy answers are all the same; give --temperature or --top-p too")
    if temperature == 0 and top_p is not None:
        raise ConfigError("--temperature", "0 is greedy, so --top-p has no meaning")
    return {"do_sample": True} | sampled if sampled else {}


def set_seed(seed: int | None) -> None:
    """Seed sampling; None: with something new."""
    import torch

    if seed is None:
        torch.seed()
    else:
        torch.manual_seed(seed)


def _stream(base: Base, prompt: Any, prefix: Any, options: dict[str, Any]) -> None:
    live.settle()
    for piece in base.stream(prompt, prefix, **options):
        typer.echo(common.printable(piece, keep="\n\t"), nl=False)
    typer.echo()


def _print(rows: list[tuple[Any, str | None]], texts: list[str], as_json: bool, several: bool) -> None:
    if as_json:
        common.print_json(
            [
                {"input": entry, "text": text} | ({"prefix": name} if several else {})
                for (entry, name), text in zip(rows, texts, strict=True)
            ]
        )
        return
    live.settle()
    for text in texts:  # a file or another program gets them as they are
        typer.echo(common.printable(text, keep="\n\t") if sys.stdout.isatty() else text)
