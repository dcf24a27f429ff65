"""The page on many tasks: what it says about threads and asyncio runs as it stands there."""

from __future__ import annotations

import asyncio
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import TextIteratorStreamer

import foreword
from tiny import random_batch, tiny_base, trained_like

PAGE = Path(__file__).parent.parent / "docs" / "many-tasks.md"


def blocks() -> list[str]:
    section = PAGE.read_text(encoding="utf-8").split("## Threads and asyncio")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_its_examples_give_each_caller_its_own_prefix() -> None:
    base = tiny_base("llama")
    banking, restaurants = trained_like(base, 5, seed=1), trained_like(base, 4, seed=2)
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    first: dict[str, Any] = random_batch([7]) | options
    second: dict[str, Any] = random_batch([5], seed=5) | options

    def tokens(prompt: dict[str, Any], prefix: foreword.Prefix | None) -> torch.Tensor:
        with base.attach(prefix):
            return base.model.generate(**prompt)

    found: list[Any] = []
    names: dict[str, Any] = {
        "asyncio": asyncio, "torch": torch, "foreword": foreword, "Thread": threading.Thread,
        "TextIteratorStreamer": TextIteratorStreamer, "base": base, "banking": banking, "restaurants": restaurants,
        "first": first, "second": second, "prompt": first, "text": first, "executor": ThreadPoolExecutor(1),
        "summarise": lambda prompt: base.model.generate(**prompt),
        "print": lambda text, end: found.append(text),
    }  # fmt: skip
    tasks, carried, streaming = blocks()
    exec(tasks.replace("await asyncio.gather", "return await asyncio.gather").replace("-> None", "-> list"), names)  # noqa: S102
    answers = asyncio.run(names["main"]())
    assert torch.equal(answers[0], tokens(first, banking))
    assert torch.equal(answers[1], tokens(second, restaurants))
    exec(carried, names)  # noqa: S102
    assert torch.equal(names["future"].result(), tokens(first, banking))
    exec(streaming, names)  # noqa: S102
    expected = tokens(first, banking)[0, first["input_ids"].shape[1] :]
    assert "".join(found) == base.tokenizer.decode(expected)
    assert not torch.equal(tokens(first, banking), tokens(first, None))
