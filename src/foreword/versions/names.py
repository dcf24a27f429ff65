"""Names in a store: `team/task`, `team/task@tag`, `team/task@digest`. What is allowed is listed, all else is refused.

Lower-case letters, digits and `.`, `_`, `-` within: so no two names differ only in case, none looks like another in
other letters, none is a path, and each can be a file's name on every system.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from foreword.errors import ConfigError

LONGEST = 64  # characters of a part
LATEST = "latest"
SCHEME = "store:"  # may stand in front of a reference, where a folder of the same name would be meant
_PART = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")
_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_RULE = f"lower-case letters, digits, and '.', '_' or '-' between them, at most {LONGEST} characters"
_DEVICES = {"con", "prn", "aux", "nul", *(f"{name}{number}" for name in ("com", "lpt") for number in range(10))}


@dataclass(frozen=True)
class Reference:
    """A name in a store, and which of its versions: by a tag, or by a digest's first 8 to 64 hexadecimal digits."""

    name: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        version = self.tag or self.digest
        return self.name if version is None else f"{self.name}@{version}"


def parse(text: str) -> Reference:
    """Return the reference that `text` is; without a tag or digest its tag is `latest`.

    Raises `ConfigError` that says which part is not allowed and why.
    """
    name, at, version = text.removeprefix(SCHEME).partition("@")
    check_name(name)
    if not at:
        return Reference(name, LATEST)
    digest = version.removeprefix("sha256:")
    if _DIGEST.fullmatch(digest):
        return Reference(name, digest=digest)
    if version.startswith("sha256:"):
        raise ConfigError("digest", f"{version!r:.100} must have 8 to 64 hexadecimal digits after 'sha256:'")
    check_tag(version)
    return Reference(name, version)


def is_reference(text: str) -> bool:
    """Return True if `text` has the form of a reference. A path may have it, too."""
    return _passes(parse, text)


def check_name(name: str) -> None:
    """Raise `ConfigError` unless `name` is `team/task`, two allowed parts."""
    parts = name.split("/")
    if len(parts) != 2:
        raise ConfigError("name", f"{name!r:.100} must be team/task, two parts with a slash between")
    for part in parts:
        _check(part, "name", name)


def check_tag(tag: str) -> None:
    """Raise `ConfigError` unless `tag` is allowed; what could be a digest is not."""
    _check(tag, "tag", tag)
    if _DIGEST.fullmatch(tag):
        raise ConfigError("tag", f"{tag!r} could be a digest; choose one that has other letters or is shorter than 8")


def allowed_name(name: str) -> bool:
    """Return True if `check_name` raises nothing."""
    return _passes(check_name, name)


def allowed_tag(tag: str) -> bool:
    """Return True if `check_tag` raises nothing."""
    return _passes(check_tag, tag)


def _passes(check: Callable[[str], object], text: str) -> bool:
    try:
        check(text)
    except ConfigError:
        return False
    return True


def is_digest(text: str) -> bool:
    """Return True for 64 hexadecimal digits."""
    return len(text) == 64 and _DIGEST.fullmatch(text) is not None


def _check(part: str, field: str, whole: str) -> None:
    if _PART.fullmatch(part) and len(part) <= LONGEST and part.partition(".")[0] not in _DEVICES:
        return
    raise ConfigError(field, f"{whole!r:.100} is not allowed: {_reason(part)} ({_RULE})")


def _reason(part: str) -> str:
    """Say what is wrong with a part, the first thing only."""
    if not part:
        return "a part is empty"
    if len(part) > LONGEST:
        return f"a part has {len(part):,} characters"
    for character in part:
        if character.isascii() and character.isalpha() and character != character.lower():
            return f"{character!r} is upper case; write {part.lower()!r:.80}"
        if not re.match(r"[a-z0-9._-]", character):
            return f"{character!r} ({unicodedata.name(character, 'unnamed').lower()}) is no such character"
    if part.partition(".")[0] in _DEVICES:
        return f"{part!r} is a device on Windows"
    return f"{part!r:.80} begins or ends with {part[0] if not part[0].isalnum() else part[-1]!r}"
