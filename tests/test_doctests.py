"""The examples in public docstrings run, with `base`, a `prefix` and a file rows.jsonl at hand."""

from __future__ import annotations

import doctest
import inspect
import json
from typing import Any

import pytest
import torch

import foreword

PUBLIC = {name: getattr(foreword, name) for name in foreword.__all__ if name != "__version__"}
FINDER = doctest.DocTestFinder(exclude_empty=True)


def examples() -> dict[str, doctest.DocTest]:
    found = {}
    for name, thing in PUBLIC.items():
        kinds = [kind for kind in inspect.getmro(thing) if kind.__module__.startswith("foreword")] if inspect.isclass(
            thing
        ) else [thing]  # fmt: skip
        for kind in kinds:
            for test in FINDER.find(kind, name, globs={}):
                if test.examples:
                    found[test.name] = test
    return found


EXAMPLES = examples()


def test_what_people_call_first_has_an_example() -> None:
    wanted = {
        "load",
        "train",
        "evaluate",
        "concat",
        "average",
        "PrefixPool",
        "Base.generate",
        "Base.stream",
        "Base.attach",
    }
    assert wanted <= set(EXAMPLES)


@pytest.mark.smollm2
@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, smollm2, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 20)
    prefix = foreword.Prefix.from_text("Answer in one word.", smollm2)
    scope: dict[str, Any] = {"foreword": foreword, "torch": torch, "base": smollm2, "prefix": prefix}
    said: list[str] = []
    test = EXAMPLES[name]
    test.globs = scope
    failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert not failed, "".join(said)
