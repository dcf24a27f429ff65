"""`foreword run-llamacpp`: prefixes on llama.cpp's server, with an API like OpenAI's."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from foreword.cli import common, live
from foreword.cli.prefixes import Prefixes
from foreword.config import DEFAULT_MODEL as NAME
from foreword.errors import ConfigError


def command(
    model_file: Annotated[Path, typer.Option("--model-file", help="The base as a GGUF file, or smollm2-135m.")],
    prefix: Annotated[
        list[str] | None,
        typer.Option("--prefix", help="A saved prefix's folder, its run's, or team/task; may be repeated."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every prefix of the store that has a latest version and fits the base.")
    ] = False,
    model: common.Model = None,
    server: Annotated[
        str | None,
        typer.Option("--server", help="The program llama-server. Default: on PATH, else that of its wheel."),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: a free one.")] = 0,
    cache_type: Annotated[str, typer.Option("--cache-type", help="Type of the KV cache: f16 or f32.")] = "f16",
    parallel: Annotated[int, typer.Option("--parallel", min=1, max=64, help="Requests at a time.")] = 2,
    ctx_size: Annotated[
        int, typer.Option("--ctx-size", min=16, help="Tokens of a prefix, its prompt and its answer together.")
    ] = 4096,
    flash_attention: Annotated[
        bool,
        typer.Option("--flash-attention/--no-flash-attention", help="Without it, CPU answers are nearer to PyTorch's."),
    ] = True,
    server_options: Annotated[
        str, typer.Option("--server-options", help="Further options of llama-server, as one text.")
    ] = "",
    debug: common.Debug = False,
) -> None:
    """Serve prefixes on llama.cpp, each as a model of its own, in the form of OpenAI's API; Ctrl-C ends it.

    Each prompt is rendered as its prefix was trained. The model called base is the plain base.

    Example: foreword run-llamacpp --model-file base.gguf --prefix runs/e2e

    Example: foreword run-llamacpp --model-file smollm2-135m --all
    """
    from foreword.llamacpp.server import server_command

    try:
        options = shlex.split(server_options)
    except ValueError as error:
        raise ConfigError("--server-options", f"can't be split into words: {error}") from error
    found = server_command(server)
    common.begin("loading the prefixes")
    from foreword.export import BaseFiles
    from foreword.llamacpp.run import Plan, serve
    from foreword.prefix import Prefix

    if str(model_file) == NAME:
        from foreword.models.gguf_f32 import bundled_f32

        model, model_file = model or NAME, bundled_f32()
    known = Prefixes([*(prefix or []), *(of_store(model or str(model_file)) if every else [])])
    plan = Plan(found, model_file, host, port, cache_type, parallel, ctx_size, flash_attention, tuple(options))
    loaded = {name: Prefix.load(known.paths[path]) for name, path in known.names.items()}
    base = BaseFiles(common.model_for(model, known.first) if model or loaded else str(model_file))
    serve(plan, loaded, base, _ready)


def of_store(base: str) -> list[str]:
    """Return the names in the store whose latest version fits the base. Raises `ConfigError` if none does."""
    from foreword.base.loading import load_config
    from foreword.store import Store
    from foreword.versions.names import LATEST

    store = Store()
    names = [entry.version.name for entry in store.entries(fits=load_config(base)) if LATEST in entry.tags]
    if not names:
        raise ConfigError("--all", f"the store {store.url} has no prefix that fits {base}")
    return names


def _ready(address: str) -> None:
    live.settle()
    typer.echo(address)
    common.say(f"serving at {address}/v1; Ctrl-C ends it")
