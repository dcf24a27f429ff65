"""Classes that a model and its configs have while something is attached.

Some of their attributes then depend on the context that reads them, which instance attributes can't. In a context
without an attachment everything is as before. (PyTorch's FSDP2 changes the class of a module in the same way.)
"""

from __future__ import annotations

import functools
import threading
from typing import Any, ClassVar

from foreword.attach.function import IMPLEMENTATION
from foreword.attach.state import State


class ContextualConfig:
    """A config whose attention implementation is Foreword's function in contexts with an attachment."""

    _foreword_state: ClassVar[State]
    _foreword_class: ClassVar[type[Any]]

    def __init_subclass__(cls) -> None:
        """Don't make a dataclass of the subclass, as the config's own class would."""

    @property
    def _attn_implementation(self) -> str | None:
        if self._foreword_state.current is not None:
            return IMPLEMENTATION
        chosen: str | None = self.__dict__["_attn_implementation_internal"]
        return chosen

    @_attn_implementation.setter
    def _attn_implementation(self, value: Any) -> None:
        self._foreword_class._attn_implementation.fset(self, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy is a plain config."""
        return _copy, (self._foreword_class, dict(self.__dict__))


class _Generate:
    """`model.generate`. Given to another thread, it takes along what is attached where it was looked up.

    `Thread(target=model.generate, …)` is how Transformers' streamers are used. A new thread has an empty context.
    """

    def __get__(self, model: Any, kind: type[Any]) -> Any:
        own = super(ContextualModel, kind if model is None else model).generate  # type: ignore[misc]
        if model is None:
            return own
        state: State = model._foreword_state
        attachment, home = state.current, threading.get_ident()
        if attachment is None:
            return own

        @functools.wraps(own)
        def generate(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == home or state.current is not None:
                return own(*args, **kwargs)
            with state.activate(attachment):
                return own(*args, **kwargs)

        return generate


class ContextualModel:
    """A model whose `generate` can be given to a thread."""

    _foreword_state: ClassVar[State]

    def __init_subclass__(cls) -> None:
        """Call no hook of the model's own class: the subclass is no new architecture."""

    generate = _Generate()


def disguised(kind: type[Any], mixin: type[Any], state: State) -> type[Any]:
    """Return a subclass of `kind` with `mixin` in front and the same name, by which Transformers looks classes up."""
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (mixin, kind), names | {"_foreword_state": state, "_foreword_class": kind})


def _copy(kind: type[Any], attributes: dict[str, Any]) -> Any:
    copy: Any = object.__new__(kind)
    copy.__dict__.update(attributes)
    return copy
