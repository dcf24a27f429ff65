"""Settings: read from three formats, checked once, errors that name the field."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import foreword
from foreword.config import EvalConfig, TrainConfig
from foreword.errors import ConfigError
from foreword.settings import build, read_settings, to_dict
from tiny import tiny_base


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.yaml", "data: a.jsonl\nlength: 8\ntrackers: []\nlr: 1\n"),
        ("run.toml", 'data = "a.jsonl"\nlength = 8\ntrackers = []\nlr = 1\n'),
        ("run.json", '{"data": "a.jsonl", "length": 8, "trackers": [], "lr": 1}'),
    ],
)
def test_formats_agree(tmp_path, name, text) -> None:
    (tmp_path / name).write_text(text)
    config = build(TrainConfig, read_settings(tmp_path / name))
    assert config == TrainConfig(data="a.jsonl", length=8, trackers=(), lr=1.0)
    assert type(config.lr) is float
    assert build(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_a_number_that_yaml_takes_for_text(tmp_path) -> None:
    (tmp_path / "run.yaml").write_text("lr: 6e-2\ntemplate: 1e-2\n")
    config = build(TrainConfig, read_settings(tmp_path / "run.yaml"))
    assert (config.lr, config.template) == (0.06, "1e-2")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lenght": 3}, "did you mean 'length'"),
        ({"zzz": 3}, "is not a setting"),
        ({"length": 0}, "length: must be 1 or more"),
        ({"length": "8"}, "length: must be a whole number, not '8'"),
        ({"length": True}, "length: must be a whole number"),
        ({"lr": 0.0}, "lr: must be above 0"),
        ({"lr": float("nan")}, "lr: must be a finite number above 0"),
        ({"scheduler": "sawtooth"}, "scheduler: must be one of linear, cosine, constant"),
        ({"accumulation": 20, "batch_size": 4}, "accumulation: 20 parts"),
        ({"init": "prefix"}, "init_prefix: init 'prefix' needs"),
        ({"init": "random", "init_text": "x"}, "init_text: has no meaning"),
        ({"data": None}, "data: must be text"),
        ({"trackers": "tensorboard"}, "trackers: must be a list of text"),
        ({"options": 3}, "options: must be a mapping"),
    ],
)
def test_wrong_settings_name_the_field(values, message) -> None:
    with pytest.raises(ConfigError, match=message):
        build(TrainConfig, values)


def test_eval_metrics_are_checked(tmp_path) -> None:
    (tmp_path / "x.jsonl").write_text('{"input": "a", "target": "b"}\n')
    with pytest.raises(ConfigError, match="'blue' is not known to lm; choose from loss, perplexity"):
        foreword.evaluate(tiny_base(), EvalConfig(data=str(tmp_path / "x.jsonl"), metrics=("blue",)))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.yaml", "data: [", "line 1"),
        ("run.toml", "data = x\n", "line 1"),
        ("run.json", "{", "line 1"),
        ("run.yaml", "- a\n", "must hold a mapping"),
        ("run.ini", "", "must end in"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, text, message) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_settings(tmp_path / name)
    assert name in str(caught.value)
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        read_settings(tmp_path / "nowhere.yaml")


@given(
    st.dictionaries(st.text(max_size=12), st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()))
)
def test_any_mapping_gives_a_config_or_a_config_error(values) -> None:
    try:
        config = build(TrainConfig, values)
    except ConfigError:
        return
    assert isinstance(config, TrainConfig)
