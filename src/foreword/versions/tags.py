"""A tag: one small object that says which version a name's tag means. It is replaced as a whole."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from foreword.errors import PrefixFormatError
from foreword.sealing import sealed
from foreword.versions.names import is_digest
from foreword.versions.reading import unsealed

FORMAT, FORMAT_VERSION = "foreword-tag", 1
SUFFIX = ".json"
MOST = 2**14  # bytes


@dataclass(frozen=True)
class Tag:
    """name: team/task. tag: its name. digest: the version, 64 hexadecimal digits. moved: when, in UTC."""

    name: str
    tag: str
    digest: str
    moved: datetime


def tag_now(name: str, tag: str, digest: str) -> Tag:
    """Return a tag that is moved now."""
    return Tag(name, tag, digest, datetime.now(UTC).replace(microsecond=0))


def as_json(tag: Tag) -> bytes:
    """Return the bytes of a tag's object."""
    value = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "name": tag.name,
        "tag": tag.tag,
        "id": tag.digest,
        "moved": tag.moved.isoformat(),
    }
    return (json.dumps(sealed(value), indent=2) + "\n").encode()


def parsed(data: bytes, where: str, name: str, tag: str) -> Tag:
    """Return the tag of an object's bytes, which must be that of `name` and `tag`. Raises `PrefixFormatError`."""
    value = unsealed(data, where, FORMAT, FORMAT_VERSION, "set the tag again")
    if (value.get("name"), value.get("tag")) != (name, tag):
        raise PrefixFormatError(f"{where} is the tag {value.get('name')!r:.80}@{value.get('tag')!r:.80}; set it again")
    digest = value.get("id")
    if not isinstance(digest, str) or not is_digest(digest):
        raise PrefixFormatError(f"{where}: 'id' must be a version's digest, got {digest!r:.80}; set the tag again")
    try:
        moved = datetime.fromisoformat(value["moved"]).astimezone(UTC)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise PrefixFormatError(f"{where}: 'moved' must be a date and time; set the tag again") from error
    return Tag(name, tag, digest, moved)
