"""Where no row fits a task, the error names the task or the flag that would help."""

from __future__ import annotations

import json

import pytest

import foreword
from foreword.errors import DataError
from tiny import tiny_base
from training_helpers import settings

CASES = [
    ("seq-cls", {"input": "a", "target": "b"}, "They look like rows of another task: --task lm"),
    ("seq-cls", {"messages": [{"role": "user", "content": "a"}]}, "They look like rows of another task: --task lm"),
    ("seq-cls", {"tokens": ["a"], "tags": ["O"]}, "They look like rows of another task: --task token-cls"),
    ("seq-cls", {"text": "a", "domain": "b", "intent": "c"}, "Say which field it is: --target-field domain|intent"),
    ("token-cls", {"text": "a", "label": "b"}, "They look like rows of another task: --task seq-cls"),
    ("qa", {"text": "a", "label": "b"}, "They look like rows of another task: --task seq-cls"),
    ("multiple-choice", {"text": "a", "label": "b"}, "They look like rows of another task: --task seq-cls"),
]


@pytest.mark.parametrize(("task", "row", "hint"), CASES)
def test_the_hint(tmp_path, task, row, hint) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text((json.dumps(row) + "\n") * 3)
    with pytest.raises(DataError) as raised:
        foreword.train(tiny_base(), settings(file.parent, data=str(file), task=task, template=None))
    text = str(raised.value)
    assert text.endswith(hint)
    assert len(text) < 400
    assert not (tmp_path / "run").exists()
