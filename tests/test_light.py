"""A core install: what runs without the packages of the extras, and what says which extra it needs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import foreword
from foreword.cli.main import app
from foreword.extras import EXTRAS
from tiny import byte_tokenizer, tiny_model

ROOT = Path(__file__).parents[1]
SOURCES = Path(foreword.__file__).parent
CORE = {"torch", "transformers", "safetensors", "numpy", "typer", "rich", "filelock", "pyyaml", "jinja2"}
# Packages that come with the core, or are used only if they are there
WITH_CORE = {"yaml", "markupsafe", "cut_cross_entropy", "jinja2", "tokenizers", "huggingface_hub", "packaging"}
# Import an extra's package by statement, where a caller or the line before has asked for it
ASKED = {
    "cli/chat.py",  # input() without it
    "data/arrow.py", "data/hub.py", "models/lora.py", "models/quantise.py",
    "training/accelerator.py", "training/folder.py",
    "training/lora.py",  # a base with a LoRA was loaded by PEFT
}  # fmt: skip
# In place of a core install: no package of an extra can be imported, nor found
BLOCK = """
import importlib.util, sys
blocked = {blocked}
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Finder)
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name.partition(".")[0] in blocked else real(name, *a)
"""
PACKAGES = sorted({*EXTRAS, "pandas", "scipy", "nltk", "psutil"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made: Path = tmp_path_factory.mktemp("light")
    tiny_model("llama").save_pretrained(made / "model")
    byte_tokenizer(chat=True).save_pretrained(made / "model")
    rows = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(20)]
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "rows.parquet").write_bytes(b"PAR1")
    (made / "model.gguf").write_bytes(b"GGUF")
    (made / "rows.arrow").write_bytes(b"ARROW1")
    (made / "saved").mkdir()
    (made / "saved" / "dataset_info.json").write_text("{}")
    return made


def light(folder: Path, code: str, blocked: Sequence[str] = PACKAGES) -> subprocess.CompletedProcess[str]:
    """Run `code` where only the core is installed, or where `blocked` are not."""
    program = BLOCK.format(blocked=set(blocked)) + code
    fresh = os.environ | {"FOREWORD_CACHE": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=fresh, capture_output=True, text=True, timeout=300
    )


def commands(folder: Path, *lines: list[str], blocked: Sequence[str] = PACKAGES) -> list[dict[str, Any]]:
    """Exit code, output and errors of each command line."""
    code = f"""
import contextlib, io, json
from foreword.cli.main import execute
told = []
for line in {lines!r}:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = execute(line)
    told.append({{"line": line, "code": code, "out": out.getvalue(), "err": err.getvalue()}})
print("@@" + json.dumps(told))
"""
    done = light(folder, code, blocked)
    assert "@@" in done.stdout, done.stderr[-2000:]
    told: list[dict[str, Any]] = json.loads(done.stdout.rpartition("@@")[2])
    return told


def test_a_core_install_does_the_main_job(folder) -> None:
    train = ["train", "--model", "model", "--data", "rows.jsonl", "--length", "3", "--steps", "2", "--output", "run"]
    told = commands(
        folder,
        train,
        ["train", "--resume", "run"],
        ["show", "run/prefix"],
        ["generate", "--prefix", "run", "q", "--max-new-tokens", "3"],
        ["eval", "--data", "rows.jsonl", "--prefix", "run/prefix", "--max-new-tokens", "3", "--json"],
        ["export", "run/prefix", "--to", "transformers", "--output", "out"],
        ["slots", "model"],
        ["methods", "model"],
    )
    assert [entry["code"] for entry in told] == [0] * len(told), [e for e in told if e["code"]]
    assert "curves   run/history.jsonl (pip install 'foreword[plots]' draws them in loss.png)" in told[0]["out"]
    assert set(json.loads(told[4]["out"])["metrics"]) == {"loss", "perplexity", "exact_match"}
    assert "bleu, chrf, rouge_l left out: pip install 'foreword[eval]'" in told[4]["err"]


def test_every_verb_helps_without_extras(folder) -> None:
    verbs = [command.name or "" for command in app.registered_commands]
    told = commands(folder, ["--help"], *([verb, "--help"] for verb in verbs))
    assert len(told) == 14  # foreword itself, and thirteen verbs
    for entry in told:
        assert (entry["code"], entry["err"]) == (0, ""), entry
        assert entry["out"].strip().startswith("Usage:")


NEEDED = {
    "Parquet": (["train", "--model", "model", "--data", "rows.parquet", "--lr", "0.1"], "data"),
    "Arrow": (["train", "--model", "model", "--data", "rows.arrow", "--lr", "0.1"], "data"),
    "a saved folder": (["train", "--model", "model", "--data", "saved", "--lr", "0.1"], "data"),
    "a hub id": (["train", "--model", "model", "--data", "org/name", "--lr", "0.1"], "data"),
    "TensorBoard": (["train", "--model", "model", "--data", "rows.jsonl", "--trackers", "tensorboard"], "tensorboard"),
    "a tracker": (["train", "--model", "nowhere", "--data", "rows.jsonl", "--trackers", "wandb"], "train"),
    "BLEU": (["eval", "--model", "model", "--data", "rows.jsonl", "--metrics", "bleu"], "eval"),
    "ROUGE-L": (["eval", "--model", "model", "--data", "rows.jsonl", "--metrics", "rouge_l"], "eval"),
    "entities": (["eval", "--model", "model", "--data", "rows.jsonl", "--metrics", "entity_f1"], "eval"),
    "the bundled model": (["methods"], "gguf"),
    "a GGUF file": (["generate", "x", "--model", "model.gguf"], "gguf"),
    "the shapes of a GGUF file": (["slots", "model.gguf"], "gguf"),
    "the demo": (["demo"], "demo"),
    "int8": (["generate", "x", "--model", "model", "--quantise", "int8"], "int8"),
    "a LoRA": (["generate", "x", "--model", "model", "--lora", "saved"], "lora"),
}


def test_what_needs_an_extra_names_it(folder) -> None:
    told = commands(folder, *(line for line, _ in NEEDED.values()))
    for (name, (_, extra)), entry in zip(NEEDED.items(), told, strict=True):
        assert entry["code"] == 1, (name, entry)
        assert f"pip install 'foreword[{extra}]'" in entry["err"], (name, entry["err"])
        assert entry["err"].count("error: ") == 1


def test_an_extra_that_is_there_in_part_is_named_before_long_work(folder) -> None:
    """GGUF files need Accelerate too, a tracker more than Accelerate; the demo measures once it has trained."""
    partly = {
        "accelerate": (["generate", "x", "--model", "model.gguf"], "gguf"),
        "tensorboard": (
            ["train", "--model", "model", "--data", "rows.jsonl", "--trackers", "tensorboard", "--output", "never"],
            "tensorboard",
        ),
        "rouge_score": (["demo", "--model", "model", "--output", "never"], "demo"),
    }
    for package, (line, extra) in partly.items():
        (entry,) = commands(folder, line, blocked=[package, "tensorboardX"])
        assert entry["code"] == 1, entry
        assert entry["err"].count(f"error: {package} is needed ") == 1, entry["err"]
        assert f"pip install 'foreword[{extra}]'" in entry["err"], entry["err"]
    assert not (folder / "never").exists()


def test_the_core_is_what_the_issue_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {entry.partition(">")[0].partition("=")[0] for entry in project["dependencies"]}
    assert names == CORE
    extras = project["optional-dependencies"]
    distributions = {"rouge_score": "rouge-score", "sklearn": "scikit-learn", "prompt_toolkit": "prompt-toolkit"}
    for module, extra in EXTRAS.items():
        listed = [entry.partition(">")[0] for entry in extras[extra]]
        assert distributions.get(module, module) in listed, (module, extra)


def test_all_is_every_extra_for_users_but_two() -> None:
    """What docs/install.md says of `all`: the two kinds of low precision depend on the machine."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    named = set(everything.partition("[")[2].rstrip("]").split(","))
    assert named == set(EXTRAS.values()) - {"int8", "bnb"}
    page = (ROOT / "docs" / "install.md").read_text()
    assert "every extra below but int8 and bnb" in page
    for extra in {*EXTRAS.values(), "demo"}:
        assert f"`{extra}`" in page, extra


def test_other_packages_are_imported_through_extras_only() -> None:
    """At the top of a file nothing but the core; elsewhere an extra's package only where it was asked for."""
    known = CORE | WITH_CORE | set(sys.stdlib_module_names) | {"foreword"}
    for file in SOURCES.rglob("*.py"):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import)
                else [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            )  # fmt: skip
            for name in (entry.partition(".")[0] for entry in names):
                assert name in known or name in EXTRAS, f"{file}: {name}"
                assert name not in EXTRAS or file.relative_to(SOURCES).as_posix() in ASKED, f"{file}: {name}"
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                text = ast.unparse(node)
                assert not any(text.split()[1].partition(".")[0] == name for name in EXTRAS), f"{file}: {text}"


def shortest(*command: str, runs: int = 8) -> float:
    """Processor seconds of the fastest of several runs, less those of a bare interpreter.

    Not those of a clock: other tests run beside this one.
    """

    def seconds(arguments: tuple[str, ...]) -> float:
        found = []
        for _ in range(runs):
            process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            assert process.returncode == 0, arguments
            found.append(used.ru_utime + used.ru_stime)
        return min(found)

    return seconds(command) - seconds(("-c", ""))


def test_importing_is_quick() -> None:
    """The issue's own limits, for the fastest of several runs."""
    assert shortest("-c", "import foreword") < 0.1
    assert shortest("-m", "foreword", "--help") < 0.3
