"""Small sealed JSON objects: what version.json and a tag have in common."""

from __future__ import annotations

from typing import Any

from foreword.errors import PrefixFormatError
from foreword.files import Unreadable, json_of
from foreword.sealing import manifest_digest


def unsealed(data: bytes, where: str, kind: str, version: int, remedy: str) -> dict[str, Any]:
    """Return the object in `data`, whose format is `kind` of `version` and whose digest covers all of it.

    where: its place, remedy: what to do about damage, for errors. Raises `PrefixFormatError`.
    """
    try:
        value = json_of(data)
    except Unreadable as error:
        raise PrefixFormatError(f"{where} {error}") from error
    if not isinstance(value, dict) or value.get("format") != kind or value.get("version") != version:
        raise PrefixFormatError(f"{where} is no {kind} of version {version}; update foreword")
    if value.get("digest") != manifest_digest(value):
        raise PrefixFormatError(f"{where} was changed or damaged: its digest is not that of its content; {remedy}")
    return value
