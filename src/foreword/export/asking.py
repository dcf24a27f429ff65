"""How a prompt was rendered in training: kept in the header of a tensor file, and printed as code for Transformers."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import safe_open

from foreword.base.rendering import fields_of
from foreword.prefix import Prefix

PROMPT = '"PROMPT"'  # stands for a user's text in a printed program
PROGRAM = "ask.py"
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
    home = str(Path.home())
    if len(home) > 1:  # a program is passed on; whose home it was is nobody's business
        usage = usage.replace(f"base = '{home}{os.sep}", f"base = os.path.expanduser('~') + '{os.sep}", 1)
    asked = " ".join(["'your input'"] if count == 1 else [f"'text {number + 1}'" for number in range(count)])
    return _ALONE.format(name=PROGRAM, asked=asked) + usage + "\n"


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
