"""`llamacpp`: a slot of llama.cpp's server, which restores it and finds it again by its tokens.

The folder holds the slot in each version of llama.cpp's format, for caches in f16 (the server's default) and f32, a
request that begins with the prefix's alias, and `prefix.json`, which tells of both.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from foreword.base.rendering import Renderer
from foreword.errors import ConfigError, ExportError
from foreword.export.alias import Alias, alias_of
from foreword.export.base import BaseFiles, Exporter, untried
from foreword.export.llamacpp_state import SESSIONS, TYPES, VERSIONS, Layer, interleaved, session, state
from foreword.models import bundled
from foreword.prefix import Prefix
from foreword.prefix.described import no_cache, on_lora
from foreword.prefix.records import recorded_config, recorded_template

FACTS, REQUEST = "prefix.json", "request.json"


@dataclass(frozen=True)
class Layout:
    """How llama.cpp holds the keys of an architecture.

    name: its own for it. interleaved: its converter reorders the channels of keys, so that those that turn together are
    neighbours. windows: None: every layer sees all, or (n, first): each n-th layer does, the first of n or the last.
    """

    name: str
    interleaved: bool = False
    windows: tuple[int, bool] | None = None

    def full_layers(self, count: int) -> list[bool]:
        """Return which of `count` layers see all tokens."""
        if self.windows is None:
            return [True] * count
        every, first = self.windows
        return [layer % every == (0 if first else every - 1) for layer in range(count)]


# By `model_type`, from llama.cpp's `llama_model_rope_type` and its converter. GPT-2's keys hold no positions.
LAYOUTS = {
    "cohere2": Layout("cohere2", windows=(4, False)),
    "gemma": Layout("gemma"),
    "gemma2": Layout("gemma2", windows=(2, False)),
    "gemma3_text": Layout("gemma3", windows=(6, False)),
    "gpt2": Layout("gpt2"),
    "gpt_neox": Layout("gptneox"),
    "granite": Layout("granite", interleaved=True),
    "llama": Layout("llama", interleaved=True),
    "mistral": Layout("llama", interleaved=True),
    "mixtral": Layout("llama", interleaved=True),
    "olmo2": Layout("olmo2"),
    "phi3": Layout("phi3"),
    "qwen2": Layout("qwen2"),
    "qwen3": Layout("qwen3"),
    "smollm3": Layout("smollm3", interleaved=True),
    "stablelm": Layout("stablelm"),
    "starcoder2": Layout("starcoder2"),
}
_SCALINGS = ("default", "linear", "llama3")  # of rotary frequencies
# What keeps others out, where it is known
_REASONS = {
    "deepseek_v3": "llama.cpp caches latents there, not keys and values",
    "gpt_oss": "its attention sinks were not tried with llama.cpp",
    "llama4_text": "its chunked attention was not tried with llama.cpp",
    "gemma4_text": "its layers share keys and values and differ in width, which was not tried with llama.cpp",
    "opt": "llama.cpp doesn't run it",
    "codegen": "llama.cpp doesn't run it",
    "gptj": "llama.cpp doesn't run it",
} | dict.fromkeys(
    ("falcon_h1", "jamba", "lfm2", "qwen3_next"), "it also has recurrent layers, whose state a prefix says nothing of"
)


class LlamaCpp(Exporter):
    name = "llamacpp"
    summary = "slots of llama.cpp's server, with the request that uses them"

    def refusal(self, prefix: Prefix, base: BaseFiles) -> str | None:
        if (reason := no_cache(prefix) or on_lora(prefix)) is not None:
            return reason
        kind = prefix.base.model_type
        if kind not in LAYOUTS:
            return untried(kind, _REASONS, f"the layout of llama.cpp's keys is known for {', '.join(LAYOUTS)}")
        return _unlike(base.config.get_text_config(), LAYOUTS[kind])

    def write(self, prefix: Prefix, base: BaseFiles, folder: Path) -> None:
        facts = write_slots(prefix, base, folder)
        facts["sessions"] = _write_sessions(prefix, facts, folder)
        alias = Alias(tuple(facts["alias"]["ids"]), facts["alias"]["text"])
        _write(folder / FACTS, facts)
        _write(folder / REQUEST, request(alias, _prompt(prefix, base)))

    def usage(self, folder: Path, base: BaseFiles) -> str:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        server = f"llama-server --model {_gguf(base)} --slot-save-path {shlex.quote(str(folder))} --parallel 1 "
        server += "--cache-ram 0 --flash-attn on --port 8081" + (" --swa-full" if facts["swa_full"] else "")
        return _USAGE.format(
            server=server,
            slot=slot_file(VERSIONS[0], "f16"),
            other=slot_file(VERSIONS[1], "f16"),
            newest=slot_file(VERSIONS[2], "f16"),
            exact=slot_file(VERSIONS[0], "f32"),
            request=shlex.quote(str(folder / REQUEST)),
            length=facts["length"],
            whole="" if not facts["swa_full"] else _WHOLE,
        )


_USAGE = """{server}
curl 'http://127.0.0.1:8081/slots/0?action=restore' -d '{{"filename": "{slot}"}}'
curl http://127.0.0.1:8081/completion -d @{request}

# Put your prompt in the place of PROMPT in {request}.
# Restore before each request. The prefix was used if the answer has timings.cache_n = {length}, no less and no more.
# If the server refuses the slot, it is of another version: take {other} or {newest}.
# With --cache-type-k f32 --cache-type-v f32 it is {exact}. Quantised caches (q8_0, q4_0) hold rotated keys: not these.
{whole}# foreword run-llamacpp does all this, for several prefixes, and answers as OpenAI's API does."""
_WHOLE = "# Without --swa-full the server drops the prefix and says nothing: the base has sliding windows.\n"


def slot_file(version: int, dtype: str, flash: bool = True) -> str:
    """Return the name of a slot's file; see `llamacpp_state.state`."""
    return f"slot-v{version}-{dtype}{'' if flash else '-transposed'}.bin"


def write_slots(
    prefix: Prefix, base: BaseFiles, folder: Path, types: Sequence[str] = tuple(TYPES), flash: bool = True
) -> dict[str, Any]:
    """Write the slot of `prefix` in every version of the format, and return the facts that `prefix.json` tells.

    types: of the server's cache. flash: whether the server uses flash attention. Raises `ExportError`.
    """
    layout, alias = LAYOUTS[prefix.base.model_type], alias_of(prefix.digest, prefix.length, base.tokenizer)
    caches, files = _caches(prefix, layout), []
    for version, dtype in product(VERSIONS, types):
        name = slot_file(version, dtype, flash)
        (folder / name).write_bytes(state(alias.ids, caches, version, dtype, flash))
        files.append({"file": name, "version": version, "type": dtype})
    return {
        "format": "foreword llamacpp 1",
        "alias": {"text": alias.text, "ids": list(alias.ids)},
        "length": prefix.length,
        "files": files,
        "architecture": layout.name,
        "swa_full": layout.windows is not None,
        "base": prefix.base.source,
        "template": recorded_template(prefix.record),
        "digest": prefix.digest,
    }


def _write_sessions(prefix: Prefix, facts: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Write the session of `prefix` in every version of the format, and return what `prefix.json` tells of them."""
    layout = LAYOUTS[prefix.base.model_type]
    caches, files = _caches(prefix, layout), []
    for version, dtype in product(VERSIONS, TYPES):
        name = f"session-v{SESSIONS[version]}-{dtype}.bin"
        (folder / name).write_bytes(session(facts["alias"]["ids"], caches, version, dtype, layout.name))
        files.append({"file": name, "version": SESSIONS[version], "type": dtype})
    return files


def request(alias: Alias, prompt: str) -> dict[str, Any]:
    """Return what `/completion` is asked: the alias as ids, so that no tokenizer can change it, then the prompt."""
    return {"id_slot": 0, "cache_prompt": True, "temperature": 0, "n_predict": 64, "prompt": [*alias.ids, prompt]}


def _unlike(config: Any, layout: Layout) -> str | None:
    """Say what a base has that llama.cpp does otherwise; None if nothing."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [entry for entry in parameters.values() if isinstance(entry, dict)] or [parameters]
    for scaling in (str(entry.get("rope_type", "default")) for entry in nested):
        if scaling not in _SCALINGS:
            return f"its base scales rotary frequencies ({scaling}), which was not tried with llama.cpp"
    partial = next((entry["partial_rotary_factor"] for entry in nested if "partial_rotary_factor" in entry), 1.0)
    if layout.interleaved and partial != 1.0:
        return f"only {partial:g} of its base's key channels turn, and llama.cpp's converter reorders all of them"
    count = int(config.num_hidden_layers)
    kinds = getattr(config, "layer_types", None)
    full = layout.full_layers(count)
    if layout.windows and kinds and [kind == "full_attention" for kind in kinds] != full:
        return f"llama.cpp has full attention in other layers of {layout.name} than this base"
    plain = getattr(config, "no_rope_layers", None)
    if (
        layout.name == "smollm3"
        and plain
        and [bool(layer) for layer in plain] != [(i + 1) % 4 > 0 for i in range(count)]
    ):
        return "llama.cpp leaves positions out in each fourth layer of smollm3, this base in others"
    return None


def _caches(prefix: Prefix, layout: Layout) -> list[list[Layer]]:
    """Return the layers of each of llama.cpp's caches: of full attention, and if there are windows, of those."""
    full = layout.full_layers(len(prefix.slots))
    layers = [[part.detach().float().cpu().numpy() for part in kv] for kv in prefix.slots.values()]
    ready = [(interleaved(key) if layout.interleaved else key, value) for key, value in layers]
    caches = [[layer for layer, whole in zip(ready, full, strict=True) if whole]]
    if layout.windows is not None:
        caches.append([layer for layer, whole in zip(ready, full, strict=True) if not whole])
    return caches


def _prompt(prefix: Prefix, base: BaseFiles) -> str:
    """Return PROMPT as prompts of the prefix are rendered, with the special tokens that belong to it as text."""
    config = recorded_config(prefix.record)
    try:
        renderer = Renderer(base.tokenizer, recorded_template(prefix.record), config.get("input_field") or "input")
        text = renderer.prompt(dict.fromkeys(renderer.fields, "PROMPT"))
        ids = renderer.prompt_ids(text)
    except ConfigError as error:
        raise ExportError(f"the prefix's template can't be used: {error}") from error
    first = [token for token in ids[:1] if not renderer.chat and token == base.tokenizer.bos_token_id]
    return "".join(base.tokenizer.convert_ids_to_tokens(first)) + text


def _gguf(base: BaseFiles) -> str:
    """Return the base's GGUF file for a shell, or a word in its place."""
    if base.name == bundled.NAME and (file := bundled.gguf()) is not None:
        return shlex.quote(str(file))
    return shlex.quote(base.name) if base.name and base.name.endswith(".gguf") else "MODEL.gguf"


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
