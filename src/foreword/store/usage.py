"""The command that runs a prefix. Nothing here imports PyTorch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence


def generate_command(prefix: str, fields: Sequence[str], *, head: bool = False, data: str | None = None) -> str:
    """Return a command that works when it is pasted.

    prefix: a folder or a reference. fields: those that its template names. head: it has a trained head, so it answers
    rows. data: a file of such rows.
    """
    if head:
        return f"foreword eval --prefix {shlex.quote(prefix)} --data {shlex.quote(data or 'FILE')}"
    named = {name: f"your {name}" for name in fields}
    asked = json.dumps(named, ensure_ascii=False) if len(named) > 1 else "your input"
    return f"foreword generate --prefix {shlex.quote(prefix)} {shlex.quote(asked)}"
