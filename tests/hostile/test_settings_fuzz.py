"""Any text as a settings file gives settings or a `ConfigError`; so does any change to a right one."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foreword.config import CompressConfig, EvalConfig, TrainConfig
from foreword.errors import ConfigError
from foreword.settings import build, describe, read_settings, to_dict

SUFFIXES = st.sampled_from([".yaml", ".yml", ".toml", ".json"])
KINDS = st.sampled_from([TrainConfig, EvalConfig, CompressConfig])
NAMES = st.sampled_from([name for kind in (TrainConfig, EvalConfig, CompressConfig) for name in describe(kind)])
WORDS = [
    "length", "lr", "options", "mixture", "task_options", "slots", "lengths", "1", "-1", "0", "1e9", "1e400", ".nan",
    ".inf", "inf", "nan", "null", "true", "~", "<<", "*a", "&a", "!!str", "!!set", "!!binary", "{", "}", "[", "]", ",",
    ":", ": ", "- ", "? ", "\n", "  ", "=", ".", '"', "'", '"""', "#", "|", ">", "%YAML", "---", "...", "\\ud800",
    "\\0", "2001-01-01", "0x10", "1:30", "1_000", "9" * 30, "9" * 5000, "\ud800", "\0", "é", "\u2028", "text",
]  # fmt: skip
TEXTS = st.text(max_size=60) | st.lists(st.sampled_from(WORDS), max_size=25).map("".join)
EXTREMES = st.sampled_from([10**400, -(10**20)])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | EXTREMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


MAPPINGS = st.dictionaries(NAMES, VALUES, max_size=4)
LONG_TEXTS = st.text(max_size=300) | st.lists(st.sampled_from(WORDS), max_size=200).map("".join)


def check_text(folder, kind, suffix: str, text: str) -> None:
    file = folder / f"run{suffix}"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        made = build(kind, read_settings(file), str(file))
    except ConfigError:
        return
    json.dumps(to_dict(made), allow_nan=False)


def check_values(kind, values) -> None:
    try:
        made = build(kind, values)
    except ConfigError:
        return
    assert build(kind, json.loads(json.dumps(to_dict(made), allow_nan=False))) == made


@given(kind=KINDS, suffix=SUFFIXES, text=TEXTS)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text(tmp_path, kind, suffix, text) -> None:
    check_text(tmp_path, kind, suffix, text)


@given(kind=KINDS, values=MAPPINGS)
@settings(max_examples=300, deadline=None)
def test_any_values(kind, values) -> None:
    check_values(kind, values)


@given(
    kind=KINDS, suffix=SUFFIXES, values=st.dictionaries(NAMES, VALUES, max_size=4), at=st.integers(0, 200), text=TEXTS
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_json_with_something_put_in(tmp_path, kind, suffix, values, at, text) -> None:
    whole = json.dumps(values)
    check_text(tmp_path, kind, suffix, whole[:at] + text + whole[at:])


@pytest.mark.slow
@given(
    kind=KINDS,
    suffix=SUFFIXES,
    text=st.text(max_size=300) | st.lists(st.sampled_from(WORDS), max_size=200).map("".join),
)
@settings(max_examples=30_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_many_texts(tmp_path, kind, suffix, text) -> None:
    check_text(tmp_path, kind, suffix, text)


@pytest.mark.slow
@given(kind=KINDS, values=st.dictionaries(NAMES, VALUES, max_size=8))
@settings(max_examples=30_000, deadline=None)
def test_many_values(kind, values) -> None:
    check_values(kind, values)
