"""`foreword store`, `train --store` and `import`, as someone types them."""

from __future__ import annotations

import json

import pytest

import foreword
from foreword.cli.main import execute
from foreword.cli.run_llamacpp import of_store
from foreword.errors import ConfigError
from foreword.prefix import Prefix
from foreword.store import Store
from store_helpers import numbered
from tiny import tiny_base, trained_like


@pytest.fixture
def home(tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    numbered(1).save("first")
    numbered(2).save("second")
    return Store()


def run(capsys, *arguments: str) -> str:
    """Run a command that must succeed, and return what it prints."""
    code = execute(list(arguments))
    said = capsys.readouterr()
    assert code == 0, said.err
    return said.out


def refused(capsys, *arguments: str) -> str:
    code = execute(list(arguments))
    assert code in (1, 2)
    return capsys.readouterr().err


def test_from_a_folder_to_prod_and_back(home, capsys) -> None:
    said = run(capsys, "store", "add", "first", "team/task", "--licence", "mit", "--metric", "bleu=12.5", "--tag", "v1")
    assert "added   team/task@" in said
    assert "foreword generate --prefix team/task 'your input'" in said
    run(capsys, "store", "add", "second", "team/task")
    assert "team/task@prod is" in run(capsys, "store", "tag", "team/task@v1", "prod")
    told = json.loads(run(capsys, "store", "list", "--json"))
    assert [entry["tags"] for entry in told] in ([["latest"], ["prod", "v1"]], [["prod", "v1"], ["latest"]])
    assert {"name", "digest", "base", "method", "bytes", "metrics", "created"} <= set(told[0])
    table = run(capsys, "store", "list")
    assert "team/task" in table
    assert "prod, v1" in table
    shown = run(capsys, "store", "show", "team/task@prod")
    assert "bleu 12.5" in shown
    assert "mit" in shown
    folder = run(capsys, "store", "path", "team/task@prod").strip()
    assert Prefix.load(folder).digest == numbered(1).digest
    assert "2 versions read, 0 problems" in run(capsys, "store", "verify")
    assert "key, value" in run(capsys, "show", "team/task@prod")
    run(capsys, "store", "rm", "team/task@v1")
    run(capsys, "store", "rm", "team/task@prod")
    assert "would be removed" in run(capsys, "store", "gc", "--older-than", "0", "--dry-run")
    assert "removed" in run(capsys, "store", "gc", "--older-than", "0")
    assert len(home.entries()) == 1


def test_metrics_of_an_evaluation(home, capsys, tmp_path) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"metrics": {"loss": 1.25, "bleu": 20.0}, "rows": 7}))
    run(capsys, "store", "add", "first", "team/task", "--metrics", "m.json")
    assert home.version("team/task").facts["metrics"] == {"loss": 1.25, "bleu": 20.0}
    (tmp_path / "bad.json").write_text('{"metrics": {"loss": "low"}}')
    assert "must hold numbers by name" in refused(capsys, "store", "add", "first", "team/x", "--metrics", "bad.json")
    assert "is no number" in refused(capsys, "store", "add", "first", "team/x", "--metric", "bleu=high")


def test_another_place_is_named_by_a_flag(home, capsys, tmp_path) -> None:
    other = str(tmp_path / "other")
    run(capsys, "store", "add", "first", "team/task", "--store", other)
    assert home.names() == []
    assert "key, value" in run(capsys, "--store", other, "show", "team/task")
    run(capsys, "store", "push", "team/task", home.url, "--store", other)
    assert home.load("team/task").digest == numbered(1).digest
    run(capsys, "store", "pull", "team/task", other, "--store", str(tmp_path / "third"))
    assert Store(tmp_path / "third").names() == ["team/task"]


def test_only_what_fits_a_base(home, capsys, tmp_path) -> None:
    base = tiny_base("llama")
    home.add(trained_like(base, 3), "fits/it")
    home.add(trained_like(tiny_base("gpt2"), 3), "fits/not")
    base.model.config.save_pretrained(tmp_path / "model")
    told = json.loads(run(capsys, "store", "list", "--base", str(tmp_path / "model"), "--json"))
    assert [entry["name"] for entry in told] == ["fits/it"]


def test_all_that_fits_a_base_is_served(home, tmp_path) -> None:
    base = tiny_base("llama")
    base.model.config.save_pretrained(tmp_path / "model")
    home.add(trained_like(tiny_base("gpt2"), 3), "fits/not")
    with pytest.raises(ConfigError, match="has no prefix that fits"):
        of_store(str(tmp_path / "model"))
    home.add(trained_like(base, 3), "fits/it")
    home.add(trained_like(base, 4), "fits/it")
    assert of_store(str(tmp_path / "model")) == ["fits/it"]


def test_damage_ends_with_an_error(home, capsys, tmp_path) -> None:
    run(capsys, "store", "add", "first", "team/task")
    file = next((tmp_path / "store").rglob("prefix.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    assert execute(["store", "verify"]) == 1
    said = capsys.readouterr()
    assert "prefix.safetensors" in said.out
    assert "1 problems" in said.err
    assert "was changed or damaged" in refused(capsys, "show", "team/task")


def test_wrong_names_say_what_to_write(home, capsys) -> None:
    assert "must be team/task" in refused(capsys, "store", "add", "first", "task")
    assert "'T' is upper case; write 'task'" in refused(capsys, "store", "add", "first", "team/Task")
    assert "foreword store list shows what there is" in refused(capsys, "show", "team/nothing")
    assert "there is no folder team/nothing" in refused(capsys, "export", "team/nothing", "--output", "out")


@pytest.fixture
def tiny_folder(tmp_path) -> str:
    base = tiny_base("llama", chat=True)
    base.model.save_pretrained(tmp_path / "model")
    base.tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_a_run_puts_its_result_there(home, capsys, tmp_path, tiny_folder) -> None:
    rows = [{"input": f"say {number}", "target": f"it is {number}"} for number in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    arguments = [
        "--data",
        "rows.jsonl",
        "--model",
        tiny_folder,
        "--steps",
        "2",
        "--length",
        "3",
        "--template",
        "{input}:",
    ]
    assert "must be team/task" in refused(capsys, "train", *arguments, "--store", "only")
    said = run(capsys, "train", *arguments, "--store", "team/said", "--output", "run")
    assert "stored   team/said" in said
    facts = home.version("team/said").facts
    assert facts["method"] == "direct"
    assert facts["data"]["training"]["name"] == "rows.jsonl"
    assert str(tmp_path) not in json.dumps(dict(facts))
    assert "validation_loss" in facts["metrics"]
    assert Prefix.load("team/said").digest == Prefix.load("run").digest
    answer = ["generate", "--model", tiny_folder, "--max-new-tokens", "4", "say 3", "--prefix"]
    assert run(capsys, *answer, "team/said") == run(capsys, *answer, "run")
    again = ["--init", "prefix", "--init-prefix", "team/said", "--output", "again"]
    run(capsys, "train", *arguments, *again)
    scored = ["eval", "--data", "rows.jsonl", "--model", tiny_folder, "--metrics", "loss", "--json", "--prefix"]
    assert json.loads(run(capsys, *scored, "team/said")) == json.loads(run(capsys, *scored, "run"))


def test_a_peft_adapter_comes_in(home, capsys, tmp_path, tiny_folder) -> None:
    prefix = trained_like(foreword.load(tiny_folder, device="cpu"), 4)
    prefix.save("mine")
    run(capsys, "export", "mine", "--to", "peft", "--output", "adapter", "--model", tiny_folder)
    assert "say where the prefix goes" in refused(capsys, "import", "adapter", "--model", tiny_folder)
    said = run(capsys, "import", "adapter", "--model", tiny_folder, "--output", "back", "--store", "team/back")
    assert "4 virtual tokens, by prefix_tuning" in said
    for key, value in Prefix.load("back").slots.items():
        assert value.key.equal(prefix.slots[key].key)
    assert Prefix.load("team/back").digest == Prefix.load("back").digest
    assert "is in no format that is known" in refused(capsys, "import", "mine", "--model", tiny_folder, "--output", "x")
