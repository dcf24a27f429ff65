"""What is published of a run (prefix, head, LoRA, compressed prefix, exports) has no private path and no row in it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import foreword
from conftest import has
from foreword.cli.main import execute
from foreword.export import EXPORTERS, export_prefix
from foreword.prefix import Prefix
from foreword.prefix.stored import read_manifest
from foreword.training import checkpoint
from foreword.training.checkpoint import read_state
from tiny import byte_tokenizer, tiny_model
from training_helpers import settings

PLACE = "geheim-anna"  # a folder that all of the run lies in
MARK = "qzx"  # in every row, and in the text that a prefix starts from
PARTS = (PLACE, "ordner", MARK)


@pytest.fixture
def place(tmp_path) -> Path:
    """Model, data and run folder under a private name; every row has a mark in it."""
    folder = tmp_path / PLACE / "ordner"
    folder.mkdir(parents=True)
    tiny_model("llama").save_pretrained(folder / "modell")
    byte_tokenizer().save_pretrained(folder / "modell")
    for name, count in (("train", 24), ("valid", 6)):
        rows = [{"input": f"{MARK}{i}", "text": f"{MARK}{i}", "target": f"{MARK} a", "label": "ab"[i % 2]}
                for i in range(count)]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def base_in(folder: Path, **options: Any) -> foreword.Base:
    return foreword.load(folder / "modell", device="cpu", **options)


def short(folder: Path, name: str = "lauf", **changes: Any) -> foreword.TrainConfig:
    return settings(folder, name, **({"steps": 2, "length": 8, "validate_every": 1, "samples": 1} | changes))


def require_clean(folder: Path) -> None:
    """No byte of any file in `folder`, and no file's name, has a private part in it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for file in files:
        content = file.read_bytes()
        for part in PARTS:
            assert part not in str(file.relative_to(folder))
            for text in (part.encode(), part.encode("utf-16-le"), json.dumps(part)[1:-1].encode()):
                assert text not in content, f"{part} in {file.name}"


def test_the_check_can_fail(place) -> None:
    foreword.train(base_in(place), short(place))
    with pytest.raises(AssertionError, match=r"geheim-anna in config.json"):
        require_clean(place / "lauf")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"validation": None, "template": None},
        {"init_text": f"a {MARK} text"},
        {"init": "vocab"},
        {"method": "mlp", "options": {"hidden": 16}},
        {"method": "shared", "objective": "cross-entropy"},
    ],
    ids=str,
)
def test_a_prefix(place, changes) -> None:
    result = foreword.train(base_in(place), short(place, **changes))
    require_clean(result.run / "prefix")
    record = result.prefix.record
    assert record["data"]["training"]["name"] == "train.jsonl"
    assert record["data"]["training"]["digest"].startswith("sha256:")
    assert record["data"]["validation"]["name"] == (None if "validation" in changes else "valid.jsonl")
    assert record["config"]["steps"] == 2
    assert record["config"]["seed"] == 0
    assert record["config"]["method"] == changes.get("method", "direct")
    assert record["config"]["model"] == result.prefix.base.source == "./modell"
    if "init_text" in changes:
        assert record["init_text"]["characters"] == len(changes["init_text"])


def test_a_prefix_that_goes_on_from_another(place) -> None:
    base = base_in(place)
    first = foreword.train(base, short(place, "erst"))
    start = {"init": "prefix", "init_prefix": str(first.run / "prefix")}
    result = foreword.train(base, short(place, **start))
    require_clean(result.run / "prefix")
    assert result.prefix.record["init_prefix"] == {"digest": read_manifest(first.run / "prefix")["digest"]}
    again = foreword.train(base, short(place, **start, resume=str(result.run), output=None))
    require_clean(again.run / "prefix")


def test_a_prefix_of_an_older_version_that_goes_on(place) -> None:
    """Its base's path is in its manifest; it doesn't get into the new one."""
    base = base_in(place)
    first = foreword.train(base, short(place, "erst"))
    as_older(first.run / "prefix", first.run, place)
    result = foreword.train(base, short(place, init="prefix", init_prefix=str(first.run / "prefix")))
    require_clean(result.run / "prefix")


def test_a_head(place) -> None:
    base = base_in(place)
    task: dict[str, Any] = {"task": "seq-cls", "template": "{text}:", "head_lr": 0.01, "samples": 0}
    first = foreword.train(base, short(place, "erst", **task))
    result = foreword.train(base, short(place, **task, init_head=str(first.run / "head")))
    for run in (first.run, result.run):
        require_clean(run / "prefix")
        require_clean(run / "head")
    assert json.loads((result.run / "head" / "head.json").read_text())["tasks"]["task"]["labels"] == ["a", "b"]
    assert result.prefix.record["init_head"] == {"name": "head"}


def test_a_mixture(place) -> None:
    paths = {"data": str(place / "train.jsonl"), "validation": str(place / "valid.jsonl")}
    mixture = {
        "one": {"task": "seq-cls", "template": "{text}:", **paths},
        "two": {"task": "seq-cls", "template": "{text}?", "data": paths["data"]},
    }
    changes: dict[str, Any] = {"mixture": mixture, "data": "", "validation": None, "template": None, "samples": 0}
    result = foreword.train(base_in(place), short(place, **changes))
    require_clean(result.run / "prefix")
    require_clean(result.run / "head")
    record = result.prefix.record
    assert record["data"]["training"]["name"] == {"one": "train.jsonl", "two": "train.jsonl"}
    assert record["data"]["validation"]["name"] == {"one": "valid.jsonl", "two": None}
    assert record["config"]["mixture"]["two"] == {"task": "seq-cls", "template": "{text}?"}


@pytest.mark.skipif(not has("peft"), reason="peft is not installed")
def test_a_lora(place) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(base_in(place).model, config).save_pretrained(place / "lora")
    base = base_in(place, lora=place / "lora")
    result = foreword.train(base, short(place, train="both", lora=str(place / "lora")))
    require_clean(result.run / "prefix")
    require_clean(result.run / "lora")
    assert result.prefix.record["lora"] == {"name": "lora"}
    assert foreword.load(place / "modell", device="cpu", lora=result.run / "lora").slots


@pytest.mark.parametrize("older", [False, True])
def test_compressed_prefixes_and_exports(place, older) -> None:
    base = base_in(place)
    result = foreword.train(base, short(place))
    prefix = result.run / "prefix"
    if older:
        as_older(prefix, result.run, place)
    limits: dict[str, dict[str, Any]] = {"int8": {"keep_loss": 1e6}, "uncompressed": {"max_kb": 1e6}}
    for name, limit in limits.items():
        request = foreword.CompressConfig(
            prefix=str(prefix), choices=("int8",), bleu=False, output=str(place / name), **limit
        )
        done = foreword.compress(base, request)
        assert done.output == place / name
        require_clean(place / name)
        assert Prefix.load(place / name).record["data"]["training"]["name"] == "train.jsonl"
    for to in EXPORTERS:
        export_prefix(Prefix.load(prefix), to, place / f"export-{to}", base)
        require_clean(place / f"export-{to}")


def as_older(prefix: Path, run: Path, place: Path) -> None:
    """Give a saved prefix the record that an older version wrote: all settings, and the base's path."""
    saved = Prefix.load(prefix)
    record = {name: saved.record[name] for name in ("template", "step", "validation_loss", "training_rows")}
    record["config"] = json.loads((run / "config.json").read_text())
    shutil.rmtree(prefix)
    base = dataclasses.replace(saved.base, source=str(place / "modell"))
    dataclasses.replace(saved, base=base, record=record).save(prefix)
    with pytest.raises(AssertionError):
        require_clean(prefix)


class TestWhatStillWorks:
    """Commands find base and data through the run folder, or say which flag is missing."""

    @pytest.fixture
    def run(self, place, capsys) -> Path:
        foreword.train(base_in(place), short(place))
        capsys.readouterr()
        return place / "lauf"

    evaluate = ("--metrics", "loss", "--json")
    fewer = ("--choices", "int8", "--no-bleu", "--json")

    def test_in_the_run_folder_nothing_has_to_be_named(self, place, run, capsys) -> None:
        assert execute(["generate", "x", "--prefix", str(run / "prefix"), "--max-new-tokens", "2"]) == 0
        data = str(place / "valid.jsonl")
        assert execute(["eval", "--data", data, "--prefix", str(run / "prefix"), *self.evaluate]) == 0
        capsys.readouterr()
        assert execute(["compress", str(run / "prefix"), *self.fewer]) == 0
        measured = json.loads(capsys.readouterr().out)["choices"][0]
        assert measured["validation_loss"] == pytest.approx(Prefix.load(run / "prefix").record["validation_loss"])

    def test_a_record_with_all_paths_is_enough(self, place, run, tmp_path, capsys) -> None:
        """An older version's, away from its run."""
        as_older(run / "prefix", run, place)
        alone = shutil.move(run / "prefix", tmp_path / "alone")
        assert execute(["generate", "x", "--prefix", str(alone), "--max-new-tokens", "2"]) == 0
        assert execute(["compress", str(alone), *self.fewer]) == 0

    def test_away_from_its_run_the_error_names_the_flag(self, place, run, tmp_path, capsys) -> None:
        alone = str(shutil.move(run / "prefix", tmp_path / "alone"))
        data = str(place / "valid.jsonl")
        for arguments in (["generate", "x", "--prefix", alone], ["eval", "--data", data, "--prefix", alone]):
            assert execute(arguments) == 2
            assert "made on the local base ./modell, which is not there; say where it is with --model" in (
                capsys.readouterr().err
            )
        model = ["--model", str(place / "modell")]
        assert execute(["generate", "x", "--prefix", alone, *model, "--max-new-tokens", "2"]) == 0
        capsys.readouterr()
        assert execute(["compress", alone, *model, *self.fewer]) == 2
        assert "--data" in capsys.readouterr().err
        assert execute(["compress", alone, *model, "--data", str(place / "train.jsonl"), *self.fewer]) == 2
        assert "trained on every row" in capsys.readouterr().err  # the digest of its rows says so
        assert execute(["compress", alone, *model, "--validation", data, *self.fewer]) == 0

    def test_what_was_moved_has_to_be_named(self, place, run, capsys) -> None:
        (place / "train.jsonl").rename(place / "t.jsonl")
        (place / "valid.jsonl").rename(place / "v.jsonl")
        assert execute(["compress", str(run / "prefix"), *self.fewer]) == 2
        assert "valid.jsonl, which is not there now; name it with --validation" in capsys.readouterr().err
        moved = ["--data", str(place / "t.jsonl"), "--validation", str(place / "v.jsonl")]
        assert execute(["compress", str(run / "prefix"), *moved, *self.fewer]) == 0
        (place / "modell").rename(place / "m")
        capsys.readouterr()
        assert execute(["generate", "x", "--prefix", str(run / "prefix")]) == 2
        assert "say where it is with --model" in capsys.readouterr().err

    def test_rows_that_training_held_out_are_known_by_their_digest(self, place, capsys) -> None:
        """The same data under another name, without the run folder: the rows that were trained on are not measured."""
        result = foreword.train(base_in(place), short(place, validation=None, seed=5, validation_rows=20))
        alone = shutil.move(result.run / "prefix", place / "alone")
        data = shutil.copy(place / "train.jsonl", place / "copy.jsonl")
        capsys.readouterr()
        request = ["compress", str(alone), "--model", str(place / "modell"), "--data", str(data), *self.fewer]
        assert execute(request) == 0
        assert json.loads(capsys.readouterr().out)["choices"][0]["validation_loss"] == pytest.approx(
            result.prefix.record["validation_loss"]
        )

    def test_compress_says_how_to_use_what_it_wrote_elsewhere(self, place, run, tmp_path, capsys) -> None:
        small = str(tmp_path / "small")
        few = ["--choices", "int8", "--no-bleu", "--max-kb", "100000"]
        assert execute(["compress", str(run / "prefix"), *few, "--output", small]) == 0
        assert f"--prefix {small} --model {place / 'modell'} 'your input'" in capsys.readouterr().out
        assert execute(["compress", str(run / "prefix"), *few]) == 0
        assert "--model" not in capsys.readouterr().out
        assert execute(["generate", "x", "--prefix", str(run / "prefix-compressed"), "--max-new-tokens", "2"]) == 0

    def test_a_newer_versions_record_works(self, place, run, capsys, monkeypatch) -> None:
        """Settings that are not known here are ignored wherever a record or a run's settings are read."""
        newer = {"warp": "deep", "cache": {"a": ["b"]}}
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | newer))
        saved = Prefix.load(run / "prefix")
        saved.with_record(
            saved.method, {**saved.record, "news": 1, "config": {**saved.record["config"], **newer}}
        ).save(run / "prefix")
        prefix, data = str(run / "prefix"), str(place / "valid.jsonl")
        assert execute(["show", prefix]) == 0
        assert execute(["eval", "--data", data, "--prefix", prefix, *self.evaluate]) == 0
        assert execute(["generate", "x", "--prefix", prefix, "--max-new-tokens", "2"]) == 0
        assert execute(["compress", prefix, *self.fewer]) == 0
        assert execute(["export", prefix, "--output", str(place / "out")]) == 0
        capsys.readouterr()

        def newer_state(path: Path) -> Any:
            state, settings_then, inputs = read_state(path)
            return state, settings_then | newer, inputs

        monkeypatch.setattr(checkpoint, "read_state", newer_state)
        assert execute(["train", "--resume", str(run)]) == 0
        assert "settings of another version, which are ignored: cache, warp" in capsys.readouterr().err
