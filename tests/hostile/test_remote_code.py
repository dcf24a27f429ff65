"""Code that comes with a model or a data set never runs."""

from __future__ import annotations

import ast
import io
import json
from pathlib import Path
from typing import Any

import pytest

import foreword
from foreword.base.loading import load_config
from foreword.data import read_rows
from foreword.errors import ForewordError
from tiny import byte_tokenizer, tiny_model

SOURCE = Path(__file__).parents[2] / "src"
LOADERS = {"from_pretrained", "from_config", "load_dataset"}
OTHERS = {"PeftModel"}  # it takes no such argument and loads no code


def refuses_code(call: ast.Call) -> bool:
    return any(
        word.arg == "trust_remote_code" and isinstance(word.value, ast.Constant) and word.value.value is False
        for word in call.keywords
    )


def unsafe(source: str) -> list[int]:
    """Lines with a loader that is not told `trust_remote_code=False`, or that is passed on without a call."""
    tree = ast.parse(source)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and refuses_code(node)}
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in LOADERS
        and id(node) not in called
        and not (isinstance(node.value, ast.Name) and node.value.id in OTHERS)
    ]


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCE)))
def test_every_loader_is_told_not_to_run_code(file) -> None:
    assert unsafe(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "AutoModel.from_pretrained(x)",
        "AutoConfig.from_config(x, trust_remote_code=True)",
        "datasets.load_dataset(x, trust_remote_code=flag)",
        "make = AutoModel.from_config",
    ],
)
def test_a_loader_that_is_not_told_is_found(source) -> None:
    assert unsafe(source) == [1]


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A file that code of the models below would write. Whoever is asked says yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 99))
    return tmp_path / "it-ran"


def model_with_code(folder: Path, marker: Path, kind: str, auto_map: Any, tokenizer: bool = False) -> Path:
    tiny_model("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    code = f"open({str(marker)!r}, 'w').close()\n"
    code += (
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\nclass C(LlamaConfig): pass\n"
    )
    (folder / "evil.py").write_text(code + "class M(LlamaForCausalLM): pass\nclass T(PreTrainedTokenizerFast): pass\n")
    file = folder / ("tokenizer_config.json" if tokenizer else "config.json")
    value = json.loads(file.read_text()) | {"auto_map": auto_map}
    value |= {"tokenizer_class": "T"} if tokenizer else {"model_type": kind}
    file.write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize("kind", ["llama", "evil"])
@pytest.mark.parametrize("tokenizer", [False, True])
def test_code_of_a_model_does_not_run(tmp_path, marker, kind, tokenizer) -> None:
    auto_map = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoModelForCausalLM": "evil.M"}
    tokenizers = {"AutoTokenizer": ["evil.T", "evil.T"]}
    folder = model_with_code(tmp_path / "model", marker, kind, tokenizers if tokenizer else auto_map, tokenizer)
    for action in (lambda: foreword.load(folder, device="cpu"), lambda: load_config(folder)):
        try:
            action()
        except ForewordError:
            continue
        assert kind == "llama" or tokenizer  # an unknown type of model has no other code to load with
    assert not marker.exists()


def test_code_of_a_data_set_does_not_run(tmp_path, marker) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "rows.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    (folder / "train.jsonl").write_text('{"input": "a", "target": "b"}\n')
    assert [row.line for row in read_rows(str(folder))] == [1]
    (folder / "train.jsonl").unlink()
    with pytest.raises(ForewordError, match="no data file in it"):
        list(read_rows(str(folder)))
    assert not marker.exists()


def test_control_transformers_asks_and_runs_it(tmp_path, marker, monkeypatch) -> None:
    from transformers import AutoConfig

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = model_with_code(tmp_path / "model", marker, "evil", {"AutoConfig": "evil.C"})
    AutoConfig.from_pretrained(folder)
    assert marker.exists()
