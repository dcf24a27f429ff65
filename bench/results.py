"""A results file of named cells, written as each is done, so that a bench can go on where it stopped."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from foreword.files import write_json


def data_folder(*names: str) -> str:
    """`$FOREWORD_DATA`, which must hold the named data sets; ends the bench where it does not."""
    folder = os.environ.get("FOREWORD_DATA")
    if not folder or not all((Path(folder) / name).is_dir() for name in names):
        raise SystemExit(f"set FOREWORD_DATA to the folder that holds {', '.join(names)}")
    return folder


def machine() -> str:
    """What the figures were measured on."""
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


class Results:
    """Cells by name in one JSON file. about: what is the same for all; a file of another budget is refused."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.about = path, about
        self.rows: dict[str, dict[str, Any]] = {}
        if path.is_file():
            known = json.loads(path.read_text(encoding="utf-8"))
            for name in about:
                if name != "machine" and known["about"].get(name) != about[name]:
                    raise SystemExit(f"{path} was made with {name} {known['about'].get(name)}, not {about[name]}")
            self.rows = known["cells"]
        path.parent.mkdir(parents=True, exist_ok=True)

    def cell(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The cell `name`, computed if it is not there."""
        return self.rows[name] if name in self.rows else self.put(name, run())

    def put(self, name: str, row: dict[str, Any]) -> dict[str, Any]:
        self.rows[name] = {key: _plain(value) for key, value in row.items()} | {"date": time.strftime("%Y-%m-%d")}
        write_json(self.path, {"about": self.about, "cells": self.rows})
        numbers = {key: value for key, value in self.rows[name].items() if isinstance(value, float | int)}
        print(name, "  ".join(f"{key} {value:.5g}" for key, value in numbers.items()), flush=True)
        return self.rows[name]


def _plain(value: Any) -> Any:
    """JSON knows no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return {str(key): entry for key, entry in value.items()} if isinstance(value, dict) else value
