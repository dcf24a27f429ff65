"""Answers piece by piece, while they are generated."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from foreword.base.asking import Question, prepare
from foreword.base.frozen import FrozenModel
from foreword.base.generation import generate_ids, require_generating
from foreword.prefix import Prefix


def stream_text(
    base: FrozenModel, prompt: Question, prefix: Prefix | None, template: str | None, options: dict[str, Any]
) -> Iterator[str]:
    """See `Base.stream`. Leaving the iterator stops the generation."""
    from transformers import StoppingCriteriaList, TextIteratorStreamer

    require_generating(base)
    ((ids, stops),) = prepare(base, [prompt], [prefix], template)
    streamer = TextIteratorStreamer(base.tokenizer, skip_prompt=True, skip_special_tokens=True)
    left = threading.Event()
    criteria = StoppingCriteriaList([*options.pop("stopping_criteria", ()), lambda ids, scores, **_: left.is_set()])

    def run() -> None:
        try:
            generate_ids(base, [ids], [prefix], stops, options | {"streamer": streamer, "stopping_criteria": criteria})
        finally:
            streamer.end()

    with ThreadPoolExecutor(1, "foreword-stream") as pool:
        done = pool.submit(run)
        try:
            yield from _without_space_before(streamer)
        finally:
            left.set()
        done.result()  # raises what generation raised


def _without_space_before(pieces: Iterator[str]) -> Iterator[str]:
    """Yield what is not empty, without white space at the beginning, as `generate` strips it."""
    begun = False
    for piece in pieces:
        piece = piece if begun else piece.lstrip()
        if piece:
            begun = True
            yield piece
