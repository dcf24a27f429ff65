"""How a prompt was rendered in training: kept in the header of a tensor file, and printed as code for Transformers."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open

from foreword.prefix import Prefix

_CHAT = """messages = [{"role": "user", "content": "PROMPT"}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]"""
_TEXT = """ids = tokenizer({template!r}.format(input="PROMPT"), return_tensors="pt")["input_ids"]"""


def metadata_of(prefix: Prefix) -> dict[str, str]:
    """Return the texts for the header of a tensor file made of `prefix`: its digest, and how prompts were rendered."""
    told = {"template": prefix.record.get("template"), "rendering": prefix.record.get("rendering")}
    return {"format": "pt", "digest": prefix.digest, "rendering": json.dumps(told)}


def asked(file: Path) -> str:
    """Return the code that makes the token ids `ids [1, n]` of a prompt as in training, from such a header."""
    with safe_open(file, "pt") as opened:
        template = json.loads(opened.metadata()["rendering"])["template"]
    return _CHAT if template == "chat" else _TEXT.format(template=template or "{input}")
