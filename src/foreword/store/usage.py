"""The command that runs a prefix."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from foreword.base.rendering import named_fields
from foreword.errors import ConfigError
from foreword.prefix.records import recorded_template


def generate_command(prefix: str, record: Mapping[str, Any], *, head: bool = False, data: str | None = None) -> str:
    """Return a command that works when it is pasted.

    prefix: a folder or a reference. head: it has a trained head, so it answers rows. data: a file of such rows.
    """
    if head:
        return f"foreword eval --prefix {shlex.quote(prefix)} --data {shlex.quote(data or 'FILE')}"
    names: list[str] = []
    with suppress(ConfigError):  # a template that can't be used
        names = named_fields(recorded_template(record))
    asked = json.dumps({name: f"your {name}" for name in names}, ensure_ascii=False) if len(names) > 1 else "your input"
    return f"foreword generate --prefix {shlex.quote(prefix)} {shlex.quote(asked)}"
