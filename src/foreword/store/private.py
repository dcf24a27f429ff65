"""What must not be in a version: places of a user's machine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from foreword.errors import PrefixError


def require_public(value: Any, where: str) -> None:
    """Raise `PrefixError` that names the first text in `value` (JSON values) with the user's home folder in it."""
    home = str(Path.home())
    if len(home) < 2:
        return
    pattern = re.compile(re.escape(home) + r"(?![\w.-])")
    for place, text in _texts(value, where):
        if pattern.search(text):
            raise PrefixError(
                f"{place} names your home folder ({text!r:.120}), which a stored version must not tell; save the "
                "prefix with a record without it (Prefix.with_record)"
            )


def _texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield the texts within lists and objects, names included, with their places."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield place, str(name)
            yield from _texts(entry, f"{place}: {name:.60}")
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry, place)
