"""A prefix in a store, for pushing to the hub."""

from __future__ import annotations

from pathlib import Path

from foreword.store import Store
from foreword.versions.version import Version
from prefix_helpers import small

TO, NAME = "hf://org/summary", "demo/summary"
REPOSITORY = "org/summary"
TENSORS = "prefix/prefix.safetensors"


def added(store: Store, length: int = 3, name: str = NAME, tags: tuple[str, ...] = ()) -> Version:
    return store.add(small(length), name, tags=tags)


def contents(store: Store, reference: str) -> dict[str, bytes]:
    with store.open(reference) as folder:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def with_head(tmp_path: Path) -> Path:
    """A run's folder with a head; a store doesn't look into it."""
    small(5).save(tmp_path / "run" / "prefix")
    (tmp_path / "run" / "head").mkdir()
    (tmp_path / "run" / "head" / "head.json").write_text('{"tasks": {}}')
    (tmp_path / "run" / "head" / "head.safetensors").write_bytes(b"a head")
    return tmp_path / "run" / "prefix"
