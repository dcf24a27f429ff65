"""The README's Python example runs as it stands (on a tiny model, so that it takes seconds)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import foreword
from tiny import tiny_base

README = Path(__file__).parents[1] / "README.md"


PYTHON = README.parent / "docs" / "python.md"


def examples(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_five_lines(tmp_path, monkeypatch, capsys) -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (tmp_path / "chats.jsonl").write_text((json.dumps({"messages": talk}) + "\n") * 20)
    base = tiny_base(chat=True)
    monkeypatch.setattr(foreword, "load", lambda name: base)
    monkeypatch.chdir(tmp_path)
    (code,) = examples(README)
    assert len([line for line in code.splitlines() if line.strip()]) <= 5
    exec(compile(code, str(README), "exec"), {})  # noqa: S102
    assert capsys.readouterr().out.startswith("[")


def test_classifier_example(tmp_path, monkeypatch) -> None:
    (tmp_path / "sst2").mkdir()
    for name in ("train", "valid"):
        rows = "".join(json.dumps({"text": f"{name} {i}", "label": ("no", "yes")[i % 2]}) + "\n" for i in range(20))
        (tmp_path / "sst2" / f"{name}.jsonl").write_text(rows)
    monkeypatch.setattr(foreword, "load", lambda name: tiny_base("bert"))
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"foreword": foreword}
    _, code = examples(PYTHON)[1:]
    exec(compile(code.replace("foreword.evaluate(", "found = foreword.evaluate("), str(README), "exec"), scope)  # noqa: S102
    assert 0 <= scope["found"] <= 100


def test_python_example(tmp_path, monkeypatch) -> None:
    code = examples(PYTHON)[0]
    for name in ("train", "valid"):
        rows = "".join(json.dumps({"input": f"{name} {i}", "target": "yes"}) + "\n" for i in range(16))
        (tmp_path / f"{name}.jsonl").write_text(rows)
    base = tiny_base()
    monkeypatch.setattr(foreword, "load", lambda name, dtype, device: base)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(compile(code, str(README), "exec"), scope)  # noqa: S102
    assert len(scope["texts"]) == 2
    assert foreword.Prefix.load(tmp_path / "prefixes" / "e2e").length == 32


@pytest.mark.smollm2
def test_the_notebook_runs(tmp_path, monkeypatch) -> None:
    """With two steps; what the prefixes learn in forty is another matter."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((README.parent / "examples" / "chat_logs.ipynb").read_text(encoding="utf-8"))
    scope: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            code = "".join(cell["source"]).replace("STEPS = 40", "STEPS = 2").replace("new_tokens=32", "new_tokens=3")
            exec(compile(code, "chat_logs.ipynb", "exec"), scope)  # noqa: S102
    assert len(scope["answers"]) == 3
    assert scope["cache"].get_seq_length() == 16


@pytest.mark.parametrize("page", ["README.md", *[f"docs/{p.name}" for p in (README.parent / "docs").glob("*.md")]])
def test_links_lead_somewhere(page) -> None:
    path = README.parent / page
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert target.startswith("http") or (path.parent / target).exists(), target
