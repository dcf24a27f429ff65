"""What a record says, and what it keeps to itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import pytest

from foreword.config import TrainConfig
from foreword.errors import PrefixFormatError
from foreword.prefix.records import (
    data_name,
    file_name,
    public_name,
    public_prefix,
    public_settings,
    recorded_template,
    run_settings,
    text_digest,
)
from foreword.settings import to_dict
from prefix_helpers import small

SECRET = "/home/anna/secret"


def private() -> TrainConfig:
    """Every setting that can hold a path or a text has one with `secret` in it, as far as settings go together."""
    return TrainConfig(
        data=f"{SECRET}/train.jsonl", validation=f"{SECRET}/valid.jsonl", model=f"{SECRET}/llama",
        lora=f"{SECRET}/lora", output=f"{SECRET}/run", resume=f"{SECRET}/run",
        init_prefix=f"{SECRET}/prefix", init_head=f"{SECRET}/head",
        init_text="a secret text", options={"teacher": f"{SECRET}/teacher", "hidden": 3}, trackers=("secret",),
        template="{input}=", task_options={"words": {"a": ["yes"]}}, length=7,
        mixture={"one": {"data": f"{SECRET}/one.jsonl", "template": "{text}:"}},
    )  # fmt: skip


def test_no_path_and_no_text_is_left() -> None:
    config = public_settings(to_dict(private()))
    assert "secret" not in json.dumps(config)
    assert "anna" not in json.dumps(config)
    assert config["model"] == "./llama"
    assert config["options"] == {"teacher": "teacher", "hidden": 3}
    assert config["mixture"] == {"one": {"template": "{text}:"}}
    assert (config["template"], config["task_options"], config["length"]) == ("{input}=", {"words": {"a": ["yes"]}}, 7)
    assert public_settings(config) == config


def test_a_setting_of_a_newer_version_is_kept_only_if_it_can_hold_no_text() -> None:
    assert public_settings({"rate": 0.5, "deep": True, "folder": "x", "lists": ["x"]}) == {"rate": 0.5, "deep": True}


def test_each_setting_of_a_run_is_kept_left_out_or_told_otherwise() -> None:
    """A new setting has to be thought of here."""
    filled = {item.name: "/x/secret" for item in dataclasses.fields(TrainConfig)}
    kept = {name for name, value in public_settings(filled).items() if "/" in str(value)}
    assert kept == {
        "task", "task_options", "template", "input_field", "target_field", "shape", "turns", "method", "objective",
        "slots", "lengths", "init", "dtype", "quantise", "device", "scheduler", "mixed_precision", "train",
        "prefix_dtype", "model",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("org/llama", "org/llama"),
        ("gpt2", "gpt2"),
        ("/home/anna/llama", "./llama"),
        ("/home/anna/llama/", "./llama"),
        ("~/llama", "./llama"),
        ("../llama", "./llama"),
        ("/home/anna/llama.gguf", "./llama.gguf"),
        ("C:\\Users\\anna\\llama", "./llama"),
        ("C:/Users/anna/llama", "./llama"),
        ("models/anna/llama", "./llama"),
        ("./llama", "./llama"),
    ],
)
def test_names_of_bases(model, name) -> None:
    assert public_name(model) == name
    assert public_name(name) == name


def test_a_folder_of_the_name_of_a_hub_id_is_a_folder(tmp_path, monkeypatch) -> None:
    (tmp_path / "anna" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("anna/llama") == "./llama"
    assert data_name("anna/llama") == "llama"
    assert data_name("anna/rows:train") == "anna/rows:train"
    assert file_name(".") == tmp_path.name


def test_a_prefix_of_an_older_version_is_made_public() -> None:
    prefix = small().with_record("direct", {"step": 3, "template": "{input}=", "config": to_dict(private())})
    prefix = dataclasses.replace(prefix, base=dataclasses.replace(prefix.base, source=f"{SECRET}/llama"))
    public = public_prefix(prefix)
    assert "secret" not in repr(dict(public.record)) + repr(public.base)
    assert public.record["data"] == {"training": {"name": "train.jsonl"}, "validation": {"name": "valid.jsonl"}}
    assert public.base.source == "./llama"
    assert public.digest == prefix.digest
    again = public_prefix(public)
    assert (dict(again.record), again.base) == (dict(public.record), public.base)


def test_a_text_is_told_by_its_length_and_digest() -> None:
    assert text_digest("abc") == {
        "characters": 3,
        "digest": "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }


class TestRunSettings:
    """A run's config.json is used for a prefix of that run only."""

    settings = to_dict(dataclasses.replace(private(), mixture={}))
    record: ClassVar = {"config": public_settings(settings)}

    def folder(self, tmp_path: Path, text: str | None = None) -> Path:
        (tmp_path / "config.json").write_text(json.dumps(self.settings) if text is None else text)
        return tmp_path / "prefix"

    def test_it_has_the_paths(self, tmp_path) -> None:
        assert run_settings(self.folder(tmp_path), self.record)["data"] == f"{SECRET}/train.jsonl"

    def test_an_older_record_with_paths_knows_its_run(self, tmp_path) -> None:
        assert run_settings(self.folder(tmp_path), {"config": self.settings})

    @pytest.mark.parametrize(
        "change", [{"method": "shared"}, {"length": 8}, {"model": "/x/other"}, {"template": "{input}?"}, {"seed": 1}]
    )
    def test_another_runs_is_not_used(self, tmp_path, change) -> None:
        assert not run_settings(self.folder(tmp_path), {"config": public_settings(self.settings | change)})

    @pytest.mark.parametrize("change", [{"device": "cuda"}, {"keep_checkpoints": 9}, {"prefix_dtype": "float32"}])
    def test_what_a_resumption_may_change_may_differ(self, tmp_path, change) -> None:
        assert run_settings(self.folder(tmp_path), {"config": public_settings(self.settings | change)})

    @pytest.mark.parametrize("text", ["", "[]", "null", '{"model_type": "llama"}', "[" * 100000, "{}"])
    def test_another_file_of_that_name_is_not_used(self, tmp_path, text) -> None:
        assert run_settings(self.folder(tmp_path, text), self.record) == {}
        assert run_settings(tmp_path / "nowhere" / "prefix", self.record) == {}

    @pytest.mark.parametrize("record", [{}, {"config": None}, {"config": []}, {"config": {"step": 3}}])
    def test_a_record_without_settings_has_no_run(self, tmp_path, record) -> None:
        assert run_settings(self.folder(tmp_path), record) == {}


@pytest.mark.parametrize("template", [3, ["{input}"], "\ud800{input}"])
def test_a_template_that_is_no_text_is_refused(template) -> None:
    with pytest.raises(PrefixFormatError, match="the record's template"):
        recorded_template({"template": template})
