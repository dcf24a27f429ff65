"""How a prompt was rendered in training: kept in the header of a tensor file, and printed as code for Transformers."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

from safetensors import safe_open

from foreword.base.rendering import fields_of
from foreword.files import cache_folder
from foreword.prefix import Prefix
from foreword.prefix.records import is_local

PROMPT = '"PROMPT"'  # stands for a user's text in a printed program
PROGRAM = "ask.py"
_BASE = re.compile(r"^base = (.+)$", re.MULTILINE)
_CHAT = """messages = [{"role": "user", "content": "PROMPT"}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]"""
_TEXT = """ids = tokenizer({rendered}, return_tensors="pt")["input_ids"]"""
_ALONE = """\"\"\"Usage: python {name} {asked}\"\"\"

import os
import sys

"""


def program(usage: str, folder: Path) -> str:
    """Return the printed code `usage` as a program that lies in `folder` and takes its texts from the command line."""
    count = usage.count(PROMPT)
    for number in range(count):
        usage = usage.replace(PROMPT, f"sys.argv[{number + 1}]", 1)
    usage = usage.replace(f"folder = {str(folder)!r}", "folder = os.path.dirname(os.path.abspath(__file__))", 1)
    usage = _BASE.sub(lambda match: f"base = {_passed_on(match[1])}", usage, count=1)
    asked = " ".join(["'your input'"] if count == 1 else [f"'text {number + 1}'" for number in range(count)])
    return _ALONE.format(name=PROGRAM, asked=asked) + usage + "\n"


def _passed_on(base: str) -> str:
    """Return the expression for a base, as a literal is printed, in a program that others get: no place of a user's."""
    name, cache, home = str(ast.literal_eval(base)), str(cache_folder()), str(Path.home())
    if name.startswith(cache) and cache.startswith(home) and len(home) > 1:
        return f"os.path.expanduser('~') + {name.removeprefix(home)!r}"
    if is_local(name):
        return f'os.environ.get("BASE") or sys.exit("name the base model: BASE=FOLDER python {PROGRAM} …")'
    return base


def rendered(template: str | None) -> str:
    """Return the expression that renders a prompt as `template` does; each field is `PROMPT`."""
    fields = ", ".join(f"{name!r}: {PROMPT}" for name in dict.fromkeys(fields_of(template or "{input}")))
    return f"{template or '{input}'!r}.format(**{{{fields}}})"


def metadata_of(prefix: Prefix) -> dict[str, str]:
    """Return the texts for the header of a tensor file made of `prefix`: its digest, and how prompts were rendered."""
    told = {"template": prefix.record.get("template"), "rendering": prefix.record.get("rendering")}
    return {"format": "pt", "digest": prefix.digest, "rendering": json.dumps(told)}


def asked(file: Path) -> str:
    """Return the code that makes the token ids `ids [1, n]` of a prompt as in training, from such a header."""
    with safe_open(file, "pt") as opened:
        template = json.loads(opened.metadata()["rendering"])["template"]
    return _CHAT if template == "chat" else _TEXT.format(rendered=rendered(template))
