"""What is attached in the present context, for each model.

A context is what `contextvars` means by it: every thread has one, every asyncio task has a copy of the one in which it
was made, and `asyncio.to_thread` passes its own on. So what one task or thread attaches no other one sees, and a task
sees what was attached where it was made.

Each context has a chain of `Attached`, the innermost first. The chain is never changed in place, since other contexts
may share its links.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any, ClassVar
from weakref import finalize

from foreword.attach.attachment import Attachment


class Block:
    """One `with` block. `close` is called when it is garbage: no context holds it.

    over: it ended in another context than it began in, as the block of a generator may. Then it has no effect on any.
    """

    def __init__(self, close: Callable[[], None]) -> None:
        self.over = False
        self.close = finalize(self, close)
        self.close.atexit = False


class Attached:
    """A link of the chain. owner: the name of the model. outer: the next link; the last one is `_END`."""

    def __init__(self, owner: str, attachment: Attachment, block: Block, outer: Attached | _End) -> None:
        self.owner, self.attachment, self.block, self.outer = owner, attachment, block, outer


_INNERMOST: ContextVar[Attached | _End] = ContextVar("foreword_attached")


class _End:
    """The end of the chain. innermost: the first link in the present context; the end itself if there is none.

    torch.compile can't trace `ContextVar.get`. It does read a property that is implemented in C, here the bound method
    (its argument, the object, is the default), and reads it anew before each call of a compiled function.
    """

    owner: ClassVar[str] = ""
    attachment: ClassVar[None] = None
    innermost: Any = property(_INNERMOST.get)


_END = _End()


def current(owner: str) -> Attachment | None:
    """Return what is attached to the model `owner` in this context; None: nothing is.

    Links are compared by the owners' names, since torch.compile guards texts, but not identities.
    """
    link = _END.innermost
    while link.owner and (link.owner != owner or link.block.over):
        link = link.outer
    attachment: Attachment | None = link.attachment
    return attachment


Entered = Token[Attached | _End]


def enter(owner: str, attachment: Attachment, block: Block) -> Entered:
    """Make `attachment` current in this context. Return what `leave` needs."""
    return _INNERMOST.set(Attached(owner, attachment, block, _living(_END.innermost)))


def replace(owner: str, attachment: Attachment) -> None:
    """Put `attachment` in the place of the current one of `owner`, in this context alone."""
    _INNERMOST.set(_rebuilt(_END.innermost, lambda link: link.owner == owner and not link.block.over, attachment))


def leave(block: Block, entered: Entered | None) -> None:
    """End `block`: take its link out of this context. If it began in another one, it is over in all of them.

    entered: what `enter` returned; None if it was interrupted.
    """
    rest = _rebuilt(_END.innermost, lambda link: link.block is block, None)
    try:
        if entered is not None:
            _INNERMOST.reset(entered)
    except ValueError:  # that is how a token says that it is of another context, also of the one this is a copy of
        block.over = True
        block.close()
    _INNERMOST.set(rest)


def _rebuilt(
    link: Attached | _End, chosen: Callable[[Attached], bool], attachment: Attachment | None
) -> Attached | _End:
    """Return the chain with the first `chosen` link replaced, or without it if `attachment` is None."""
    kept: list[Attached] = []
    while isinstance(link, Attached) and not chosen(link):
        kept.append(link)
        link = link.outer
    if isinstance(link, Attached):
        link = link.outer if attachment is None else Attached(link.owner, attachment, link.block, link.outer)
    for inner in reversed(kept):
        link = Attached(inner.owner, inner.attachment, inner.block, link)
    return link


def _living(link: Attached | _End) -> Attached | _End:
    """Return the chain from its first link on whose block is not over."""
    while isinstance(link, Attached) and link.block.over:
        link = link.outer
    return link
