"""Plain values: what YAML, TOML and JSON can hold, read within limits before anything large is made of them.

Plain are text, whole numbers of 64 bits, finite numbers, true, false, nothing, lists, and mappings with text as keys.
A settings file and each value of a flag is at most `MOST_BYTES` long, `MOST_DEPTH` levels deep and has at most
`MOST_VALUES` values, with each alias of YAML counted as what it stands for.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

from foreword import files
from foreword.errors import ConfigError

MOST_BYTES = 256 * 2**10
MOST_DEPTH = 32
MOST_VALUES = 10_000
MOST_INT = 2**63 - 1
_YAML = "tag:yaml.org,2002:"
_MERGE, _VALUE = f"{_YAML}merge", f"{_YAML}value"
_TAGS = {f"{_YAML}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
# tomllib's time and memory grow with the square of a dotted key's parts
_TOML_PART = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')"""
_TOML_DEEP = re.compile(
    rf"(?:^|[{{,])[ \t]*\[{{0,2}}[ \t]*{_TOML_PART}(?:[ \t]*\.[ \t]*{_TOML_PART}){{{MOST_DEPTH},}}", re.MULTILINE
)
_LONGEST_NUMBER = 400  # characters; PyYAML's time grows with the square of the parts of 1:1:1:…


def read(path: Path) -> Any:
    """Return the plain value in a .toml, .yaml, .yml or .json file. Raises `ConfigError`, which names the file."""
    parser = _PARSERS.get(path.suffix)
    try:
        text = files.read_text(path, MOST_BYTES)
    except files.Unreadable as error:
        raise ConfigError(str(path), f"can't be read: {error}") from error
    if parser is None:
        raise ConfigError(str(path), f"must end in {', '.join(list(_PARSERS)[:-1])} or {list(_PARSERS)[-1]}")
    value = parser(text, str(path))
    check_plain(value, str(path))
    return value


def parse_yaml(text: str, field: str) -> Any:
    """Return the plain value of a YAML text. Raises `ConfigError` for `field`."""
    if len(text) > MOST_BYTES:
        raise ConfigError(field, f"has {len(text):,} characters; at most {MOST_BYTES:,} are read")
    value = _yaml(text, field)
    check_plain(value, field)
    return value


def check_plain(value: Any, field: str) -> None:
    """Raise `ConfigError`, which names the place within `field`, unless `value` is plain and within the limits."""
    left = MOST_VALUES

    def check(value: Any, where: str, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ConfigError(field, f"has more than {MOST_VALUES:,} values")
        if depth > MOST_DEPTH:
            raise ConfigError(field, f"is nested more than {MOST_DEPTH} levels deep")
        if isinstance(value, Mapping):
            for key, entry in value.items():
                if not isinstance(key, str):
                    raise ConfigError(where, f"the key {shown(key)} must be text; put it in quotes")
                check_scalar(key, where)
                check(entry, f"{where}: {key:.60}", depth + 1)
        elif isinstance(value, list | tuple):
            for number, entry in enumerate(value, start=1):
                check(entry, f"{where}, entry {number}", depth + 1)
        else:
            check_scalar(value, where)

    check(value, field, 0)


def check_scalar(value: Any, field: str) -> None:
    """Raise `ConfigError` unless `value` is nothing, a truth value, text, a whole or a finite number."""
    if isinstance(value, str):
        if problem := text_problem(value):
            raise ConfigError(field, problem)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(field, f"must be a finite number, not {value}")
    elif isinstance(value, int):
        if not -MOST_INT - 1 <= value <= MOST_INT:
            raise ConfigError(field, f"must be at most {MOST_INT:,} (64 bits), not {shown(value)}")
    elif value is not None:
        raise ConfigError(
            field, f"must be text, a number, true, false, nothing, a list or a mapping, not {shown(value)}"
        )


def text_problem(text: str, null: bool = False) -> str | None:
    """Return what is wrong with a text, or None: half a surrogate pair, or a null character. null: that is allowed."""
    if not null and "\0" in text:
        return "holds a null character"
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "holds half a surrogate pair, which is not text"
    return None


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = self.maxtuple = self.maxlist = self.maxdict = 4
        self.maxstring = self.maxother = 80

    def repr_int(self, value: int, level: int) -> str:
        if abs(value) < 10**30:
            return repr(value)
        return f"a number of {math.ceil(value.bit_length() * math.log10(2)):,} digits"


shown = _Short().repr  # a value in at most some dozen words, for messages


def _toml(text: str, field: str) -> Any:
    if _TOML_DEEP.search(text):
        raise ConfigError(field, f"has a key of more than {MOST_DEPTH} parts")
    return _parsed(lambda: tomllib.loads(text), field)


def _json(text: str, field: str) -> Any:
    return _parsed(lambda: json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique), field)


def _yaml(text: str, field: str) -> Any:
    import yaml

    return _parsed(lambda: yaml.load(text, Loader=_yaml_loader()), field)  # it is a SafeLoader


def _parsed(parse: Callable[[], Any], field: str) -> Any:
    from yaml import YAMLError

    try:
        return parse()
    except RecursionError as error:
        raise ConfigError(field, f"is nested more than {MOST_DEPTH} levels deep") from error
    except (ValueError, OverflowError, LookupError, TypeError, AttributeError, YAMLError) as error:
        raise ConfigError(field, " ".join(str(error).split())[:300]) from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the mapping of a JSON object. Raises `ValueError` for a key that stands there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"the key {shown(_twice(key for key, _ in pairs))} stands there twice")
    return found


def _twice(keys: Iterable[str]) -> str:
    return Counter(keys).most_common(1)[0][0]


@cache
def _yaml_loader() -> Any:
    """Return the class of loaders. PyYAML's is imported only here, since importing Foreword should be quick."""
    import yaml
    from yaml.composer import ComposerError

    class Loader(yaml.SafeLoader):
        """A safe loader that counts values while it reads, and refuses tags, other keys than text, and double keys."""

        def __init__(self, text: str) -> None:
            super().__init__(text)
            self._depth = self._values = 0
            self._sizes: dict[Any, int] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = cast(Any, self).peek_event()
            tag = getattr(event, "tag", None)
            if tag not in _TAGS | {None, "!"}:
                raise _refused(event, f"the tag {shown(tag)} is not allowed")
            if self._depth > MOST_DEPTH:
                raise _refused(event, f"is nested more than {MOST_DEPTH} levels deep")
            self._depth += 1
            before = self._values
            node = super().compose_node(parent, index)
            self._depth -= 1
            if isinstance(event, yaml.AliasEvent):
                if node not in self._sizes:
                    raise _refused(event, f"the alias {shown(event.anchor)} stands within what it stands for")
                self._values += self._sizes[node]
            else:
                self._values += 1
                self._sizes[node] = self._values - before
            if self._values > MOST_VALUES:
                raise _refused(event, f"has more than {MOST_VALUES:,} values, aliases included")
            return node

        def compose_scalar_node(self, anchor: Any) -> Any:
            node = super().compose_scalar_node(anchor)
            if node.tag in (f"{_YAML}int", f"{_YAML}float") and len(node.value) > _LONGEST_NUMBER:
                raise _refused(node, f"the number {shown(node.value)} is too long")
            return node

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag not in (f"{_YAML}str", _MERGE, _VALUE):
                    raise _refused(key, f"the key {shown(key.value)} must be text; put it in quotes")
            keys = [key.value for key, _ in node.value if key.tag != _MERGE]
            if len(set(keys)) != len(keys):
                raise _refused(node, f"the key {shown(_twice(keys))} stands there twice")
            return node

    def _refused(at: Any, problem: str) -> ComposerError:
        return ComposerError(None, None, problem, at.start_mark)

    return Loader


_PARSERS: dict[str, Callable[[str, str], Any]] = {".toml": _toml, ".yaml": _yaml, ".yml": _yaml, ".json": _json}
