"""Which slots take a prefix, and how long each is: patterns such as `decoder.0-5`, `cross`, `encoder.3`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from foreword.errors import ConfigError
from foreword.prefix import KV, Prefix

_PATTERN = re.compile(r"(decoder|encoder|cross)(?:\.(\d+)(?:-(\d+))?)?")


def matching_slots(pattern: str, names: Iterable[str], field: str) -> list[str]:
    """Return the slots that `pattern` names: a role, one layer of it, or a range of layers, both ends included.

    Raises `ConfigError` for a pattern that can't be read or names no slot.
    """
    slots = list(names)
    match = _PATTERN.fullmatch(pattern) if isinstance(pattern, str) else None
    if match is None:
        raise ConfigError(field, f"{pattern!r} must be like decoder, decoder.3 or decoder.0-5")
    role, first, last = match.groups()
    chosen = [
        name for name in slots
        if name.startswith(f"{role}.")
        and (first is None or int(first) <= int(name.partition(".")[2]) <= int(last or first))
    ]  # fmt: skip
    if not chosen:
        raise ConfigError(field, f"{pattern!r} names no slot; there are {slots[0]} to {slots[-1]}")
    return chosen


def select_slots(prefix: Prefix, slots: Sequence[str], lengths: Mapping[str, int]) -> Prefix:
    """Return `prefix` with a choice of slots and with shorter slots.

    slots: patterns of the slots to keep; empty: all. lengths: pattern → number of first tokens that its slots keep; if
    several patterns match, the last one counts. Offset and positions stay those of `prefix`.
    Raises `ConfigError` for a wrong pattern or length.
    """
    names = list(prefix.slots)
    kept = {name for pattern in slots for name in matching_slots(pattern, names, "slots")} or set(names)
    length_of = dict.fromkeys(names, prefix.length)
    for pattern, length in lengths.items():
        if type(length) is not int or not 1 <= length <= prefix.length:
            raise ConfigError("lengths", f"{pattern}: must be 1 to {prefix.length} (length), not {length!r}")
        length_of |= dict.fromkeys(matching_slots(pattern, [name for name in names if name in kept], "lengths"), length)
    shortened = {
        name: KV(*(tensor[:, : length_of[name]] for tensor in kv)) for name, kv in prefix.slots.items() if name in kept
    }
    return replace(prefix, slots=shortened)
