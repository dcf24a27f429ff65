"""Which characters of a rendered chat a template marks as the assistant's, with `{% generation %}`.

As in Transformers, a mark begins where the text put out so far ends, and is as long as the block's text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Marked:
    """pieces: what a template has put out. spans: (start, end) characters of its marked blocks."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.spans: list[tuple[int, int]] = []
        self._length = 0

    def add(self, piece: str) -> None:
        self.pieces.append(piece)
        self._length += len(piece)

    def mark(self, text: str) -> None:
        self.spans.append((self._length, self._length + len(text)))


_MARKED: ContextVar[Marked | None] = ContextVar("foreword_marked", default=None)


@contextmanager
def marking() -> Iterator[Marked]:
    """Within the block, `mark` adds to the value that is yielded."""
    marked = Marked()
    token = _MARKED.set(marked)
    try:
        yield marked
    finally:
        _MARKED.reset(token)


def mark(text: str) -> None:
    """Note that `text` is put out next, in a marked block."""
    if (marked := _MARKED.get()) is not None:
        marked.mark(text)
