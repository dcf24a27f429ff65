"""Start everything: prefixes exported into a temporary folder, llama-server on them, and the front."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from foreword import status
from foreword.errors import ConfigError, ExportError
from foreword.export import BaseFiles
from foreword.export.llamacpp import LlamaCpp, write_slots
from foreword.export.llamacpp_state import TYPES
from foreword.llamacpp.front import Front
from foreword.llamacpp.questions import Prompts
from foreword.llamacpp.server import Command, LlamaServer
from foreword.llamacpp.serving import BASE, Served, Serving, slot_that_fits
from foreword.prefix import Prefix
from foreword.prefix.records import recorded_config, recorded_template


@dataclass(frozen=True)
class Plan:
    """model_file: a GGUF of the prefixes' base. cache_type: f16 or f32, of the KV cache. slots: requests at a time.

    room: tokens of a prefix, its prompt and its answer. flash: use flash attention. options: further ones of
    llama-server.
    """

    command: Command
    model_file: Path
    host: str = "127.0.0.1"
    port: int = 0
    cache_type: str = "f16"
    slots: int = 2
    room: int = 4096
    flash: bool = True
    options: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.cache_type not in TYPES:
            raise ConfigError(
                "--cache-type",
                f"must be {' or '.join(TYPES)}, not {self.cache_type!r}; llama.cpp rotates the keys of quantised "
                "caches, so a prefix is not right there",
            )
        if not self.model_file.is_file():
            raise ConfigError("--model-file", f"{self.model_file} is no file; give the base as GGUF")


def serve(plan: Plan, prefixes: Mapping[str, Prefix], base: BaseFiles, ready: Callable[[str], None]) -> None:
    """Serve until llama-server ends or an exception such as KeyboardInterrupt ends the wait; nothing is left running.

    prefixes: by the names that requests use. base: whose tokenizer renders prompts. ready: called with the address.
    Raises `ConfigError`, `ExportError` for a prefix that llama.cpp can't hold, `EngineError`.
    """
    if BASE in prefixes:
        raise ConfigError("--prefix", f"none can be called {BASE}: that is the plain base; rename its folder")
    with TemporaryDirectory(prefix="foreword-llamacpp-") as folder:
        slots = Path(folder)
        exported = {}
        for number, (name, prefix) in enumerate(prefixes.items()):
            status.doing("exporting prefixes", number, len(prefixes))
            exported[name] = _export(prefix, base, slots, number, plan)
        options = _options(plan, slots, any(facts["swa_full"] for facts in exported.values()))
        with LlamaServer(plan.command, options, slots / "server.log") as server:
            served = {name: _served(server, prefixes[name], base, facts) for name, facts in exported.items()}
            served[BASE] = Served(Prompts(base.tokenizer, None, raw=True))
            serving = Serving(server, served, plan.slots, plan.room)
            with Front(plan.host, plan.port, serving) as front:
                _listen(front, server, ready)


def _listen(front: Front, server: LlamaServer, ready: Callable[[str], None]) -> None:
    listening = threading.Thread(target=front.serve_forever, args=(0.1,), daemon=True)
    listening.start()
    try:
        ready(f"http://{front.server_address[0]!s}:{front.server_address[1]}")
        while True:
            server.require_alive()
            time.sleep(0.2)
    finally:
        front.shutdown()
        listening.join()


def _options(plan: Plan, folder: Path, swa_full: bool) -> list[str]:
    """Return llama-server's command line. One KV cache for all slots; no other caches, which could hold an alias."""
    options = ["--model", str(plan.model_file), "--slot-save-path", str(folder), "--parallel", str(plan.slots)]
    options += ["--kv-unified", "--ctx-size", str(plan.room * plan.slots), "--cache-ram", "0"]
    options += ["--flash-attn", "on" if plan.flash else "off"]
    options += ["--cache-type-k", plan.cache_type, "--cache-type-v", plan.cache_type, "--no-webui"]
    return [*options, *(["--swa-full"] if swa_full else []), *plan.options]


def _export(prefix: Prefix, base: BaseFiles, slots: Path, number: int, plan: Plan) -> dict[str, Any]:
    """Write the slots of a prefix into the folder `slots`, which llama-server reads no folders within.

    Returns its facts, with the names of its files, the newest version first.
    """
    if (reason := LlamaCpp().refusal(prefix, base)) is not None:
        raise ExportError(f"the prefix can't be exported to llamacpp: {reason}")
    inner = slots / str(number)
    inner.mkdir()
    facts = write_slots(prefix, base, inner, (plan.cache_type,), plan.flash)
    names = [entry["file"] for entry in reversed(facts["files"])]
    for name in names:
        (inner / name).rename(slots / f"{number}-{name}")
    return facts | {"names": [f"{number}-{name}" for name in names]}


def _served(server: LlamaServer, prefix: Prefix, base: BaseFiles, facts: Mapping[str, Any]) -> Served:
    field = recorded_config(prefix.record).get("input_field")
    template = recorded_template(prefix.record)
    prompts = Prompts(base.tokenizer, template, field if isinstance(field, str) else "input")
    return Served(prompts, tuple(facts["alias"]["ids"]), slot_that_fits(server, facts["names"], prefix.length))
