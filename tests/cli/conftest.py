"""What the command-line tests share."""

from __future__ import annotations

import json

import pytest

from tiny import byte_tokenizer, tiny_model


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model, data and a settings file, as the current one."""
    tiny_model("llama").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"input": f"q{i}", "target": "yes" if i % 2 else "no"} for i in range(20)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text("model: model\ndata: train.jsonl\nlength: 3\nsteps: 2\ntrackers: []\nlr: 0.01\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path
