"""Changing one value of a JSON file, and giving a manifest the digest of what it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from foreword.sealing import manifest_digest

Place = tuple[Any, ...]  # names and numbers, from the outermost object to a value

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5) | st.sampled_from(["sha256:00", "softmax", "gated", "float16", "svd", 10**30, 3.0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


def places(value: Any, here: Place = ()) -> Iterator[Place]:
    """Every value in a JSON value that is no object or list, by its place; and the empty ones."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = [place for name, part in parts for place in places(part, (*here, name))]
    yield from inner or [here]


def at(value: Any, place: Place) -> Any:
    for name in place:
        value = value[name]
    return value


def put(value: Any, place: Place, new: Any) -> None:
    at(value, place[:-1])[place[-1]] = new


def remove(value: Any, place: Place) -> None:
    del at(value, place[:-1])[place[-1]]


def edit(file: Path, change: Callable[[Any], object], sign: bool = True) -> None:
    """Change the JSON file. sign: give it the digest of what it then says."""
    manifest = json.loads(file.read_text())
    change(manifest)
    if sign:
        manifest["digest"] = manifest_digest(manifest)
    file.write_text(json.dumps(manifest))
