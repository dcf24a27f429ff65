"""Plain values: what YAML, TOML and JSON may hold, and how much of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.errors import ConfigError
from foreword.plain import MOST_DEPTH, MOST_INT, MOST_VALUES, check_plain, parse_yaml, read, shown

SCALARS = st.none() | st.booleans() | st.integers(-MOST_INT - 1, MOST_INT) | st.floats(allow_nan=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{a: [1, 2.5, x, null, true]}", {"a": [1, 2.5, "x", None, True]}),
        ("{a: &x {b: 1}, c: *x, d: {<<: *x, e: 2}}", {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}),
        ("{a: &x {b: 1}, c: {<<: *x, b: 3}}", {"a": {"b": 1}, "c": {"b": 3}}),  # an own key wins over a merged one
        ("{a: !!str 3}", {"a": "3"}),
        ("-9223372036854775808", -MOST_INT - 1),
    ],
)
def test_yaml_that_is_read(text, value) -> None:
    assert parse_yaml(text, "x") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: 1, a: 2}", "the key 'a' stands there twice"),
        ('{a: 1, "a": 2}', "the key 'a' stands there twice"),
        ("{1: a}", "the key '1' must be text; put it in quotes"),
        ("{no: a}", "the key 'no' must be text; put it in quotes"),
        ("{? [a, b] : c}", "must be text; put it in quotes"),
        ("a: &a [*a]", "the alias 'a' stands within what it stands for"),
        ("a: !!set {b}", "the tag 'tag:yaml.org,2002:set' is not allowed"),
        ("a: !!python/object/apply:os.system [ls]", "is not allowed"),
        ("a: 2001-02-03", "x: a: must be text, a number, true, false, nothing, a list or a mapping, not datetime.date"),
        ("a: [1, .nan]", "x: a, entry 2: must be a finite number, not nan"),
        ("a: {b: -.inf}", "x: a: b: must be a finite number, not -inf"),
        ("9223372036854775808", r"must be at most 9,223,372,036,854,775,807 \(64 bits\)"),
        ('"\\ud800"', "half a surrogate pair"),
        ('{"\\0": 1}', "null character"),
        (f"a: {'1:' * 300}1", "is too long"),
        (f"0x{'f' * 300}", "a number of 362 digits"),
        ("2001-99-99", "month must be in 1..12"),
        ("[" * 40, f"nested more than {MOST_DEPTH} levels"),
        (f"[{'x, ' * MOST_VALUES}]", f"more than {MOST_VALUES:,} values"),
        ("x" * 300_000, "at most 262,144 are read"),
    ],
)
def test_yaml_that_is_refused(text, message) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_yaml(text, "x")


@given(st.recursive(SCALARS | TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=20))
@settings(max_examples=50, deadline=None)
def test_plain_values_pass(value) -> None:
    if value not in (float("inf"), float("-inf")) and "inf" not in repr(value):
        check_plain(value, "x")


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(ConfigError, match="nested more than"):
        check_plain({"a": loop}, "x")


def test_values_are_shown_briefly() -> None:
    assert shown(8) == "8"
    assert shown("a'b") == '"a\'b"'
    assert shown(10**6000) == "a number of 6,001 digits"
    assert len(shown([["x" * 999] * 99] * 99)) < 3000


def test_a_key_of_many_parts_is_refused_before_it_is_parsed(tmp_path) -> None:
    for number, text in enumerate(("a." * 99 + "a=1", "x={" + "a." * 99 + "a=1}", "[[" + "'a' . " * 99 + "b]]")):
        file = tmp_path / f"{number}.toml"
        file.write_text(text)
        with pytest.raises(ConfigError, match="more than 32 parts"):
            read(file)
    file.write_text('a.b.c = "' + "a." * 99 + '"')
    assert read(file)["a"]["b"]["c"] == "a." * 99
